"""Write the losses of golden models on a text: `python -m tests.golden.make_text_losses`."""

import json
import tempfile
from pathlib import Path

from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.conftest import TEXT
from tests.golden.test_text_losses import CONFIGS, GOLDEN, as_json, jax_loss, save_golden

if __name__ == "__main__":
    tokenizer = train_tokenizer([TEXT * 20], 300)
    with tempfile.TemporaryDirectory() as place:
        found = {
            name: as_json(jax_loss(save_golden(Path(place) / name, config), tokenizer))
            for name, config in CONFIGS.items()
        }
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
