import json

import numpy as np
import pytest
import yaml

from jaxlm.common.architecture.parameters import stored_tensors
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.run.identity import RunIdentity, write_identity
from jaxlm.common.shelf.shelf import Shelf


@pytest.fixture
def run(tmp_path, tiny_config):
    """A finished run of a tiny ternary model, whose weights are all zero."""
    packed = {tensor.name: tensor for tensor in stored_tensors(tiny_config, "packed")}

    def read(name):
        if packed[name].dtype == "uint8":
            return np.full(packed[name].shape, 0b01010101, np.uint8)
        return np.ones(packed[name].shape, np.float32)

    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    save_artifact(path / "artifact", tiny_config, "packed", read)
    settings = {"model": {}, "preset": "ternary-tiny", "num_train_steps": 9, "init_from": "/home/me/base"}
    (path / "config.yaml").write_text(yaml.safe_dump(settings | {"optimizer": {"learning_rate": 0.01}}))
    lines = ({"step": 5, "data/tokens_seen": 80, "val/loss": 2.5, "val/bits_per_byte": 1.25}, {"step": 9})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_identity(path, RunIdentity({}, {"data": "d" * 64, "init_from": "1" * 64}))
    return path


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "models")
