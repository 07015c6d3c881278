"""Write the metrics of three training steps of each golden model: `python -m tests.golden.make_train_step`."""

import json

from tests.jaxlm.training.test_train_step import GOLDEN, run_steps

if __name__ == "__main__":
    for path, config in GOLDEN.items():
        _, lines = run_steps(config)
        path.write_text(json.dumps(lines, indent=2) + "\n")
