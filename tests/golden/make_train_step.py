"""Write train_step.json: the metrics of three training steps of the tests' tiny model."""

import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def load(name: str, path: Path):
    """A test module, imported by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    conftest = load("conftest", HERE.parent / "conftest.py")
    test = load("test_train_step", HERE.parent / "jaxlm" / "test_train_step.py")
    _, lines = test.run_steps(conftest.TINY)
    (HERE / "train_step.json").write_text(json.dumps(lines, indent=2) + "\n")
