"""Write transformers_goldens.json: the logits that transformers computes from the golden models' artifacts.

Run from the repository root in an environment with the `witness` extra:

    python -m tests.golden.make_transformers_goldens
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Kind
from tests.golden.golden_models import (
    CASES,
    GOLDENS_FILE,
    golden_token_ids,
    golden_weights,
    weights_sha256,
    write_golden_artifact,
)


def transformers_logits(config: ModelConfig, kind: Kind) -> np.ndarray:
    """Logits `[B, L, V]` of a golden model, loaded and run by transformers in float32."""
    with tempfile.TemporaryDirectory() as temporary:
        artifact = Path(temporary) / "artifact"
        write_golden_artifact(artifact, config, kind)
        model = transformers.AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(golden_token_ids(config)).long()).logits.numpy()


def main() -> None:
    torch.compiler.set_stance("force_eager")  # nothing here is worth compiling
    goldens = {
        case: {
            "weights_sha256": weights_sha256(golden_weights(config)),
            "logits": np.round(transformers_logits(config, kind).astype(np.float64), 6).tolist(),
        }
        for case, (config, kind) in CASES.items()
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    text = json.dumps({"made_with": versions, "cases": goldens}, separators=(",", ":"))
    GOLDENS_FILE.write_text(text.replace("],[", "],\n[") + "\n", "utf-8")


if __name__ == "__main__":
    main()
