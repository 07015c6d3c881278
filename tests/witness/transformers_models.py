"""Models in transformers: loaded without a complaint, and run."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

transformers.utils.logging.disable_progress_bar()


def load_in_transformers(directory: Path, caplog: pytest.LogCaptureFixture) -> torch.nn.Module:
    """Load a directory as a user would; missing, unexpected or mismatched tensors and any warning fail."""
    transformers.utils.logging.enable_propagation()  # lets caplog see its messages
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        model, problems = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    assert not any(problems.values()), problems
    about_device = ("You don't have a GPU", "You have loaded a BitNet model on CPU")
    messages = [record.getMessage().strip() for record in caplog.records]
    assert not [text for text in messages if not text.startswith(about_device)], messages
    return model


def transformers_logits(model: torch.nn.Module, token_ids: np.ndarray) -> np.ndarray:
    """Logits `[B, L, V]`."""
    with torch.no_grad():
        return model(torch.from_numpy(token_ids).long()).logits.numpy()
