"""Write train_step.json, the metrics of three training steps: `python -m tests.golden.make_train_step`."""

import json
from pathlib import Path

from tests.conftest import TINY
from tests.jaxlm.test_train_step import run_steps

if __name__ == "__main__":
    _, lines = run_steps(TINY)
    Path(__file__).with_name("train_step.json").write_text(json.dumps(lines, indent=2) + "\n")
