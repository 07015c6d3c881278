"""The command `jaxlm server`: one JAX model behind OpenAI's HTTP API."""

from dataclasses import dataclass
from pathlib import Path

from jaxlm.common.openai_api.requests import ServedModel
from jaxlm.common.serving.command import ServingConfig, find_served_format, serve
from jaxlm.load import load_model
from jaxlm.server.engine import JaxEngine
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class ServerConfig(ServingConfig):
    """The model that is served, the address, and the limits. Raises ValueError on a value out of range."""

    max_batch: int = setting(32, at_least=1)
    """Texts that are generated together, at most."""


def main(config: ServerConfig) -> None:
    """Serve a model with OpenAI's API from JAX until interrupted. A run directory is served too."""
    serve(config, lambda: open_engine(config))


def open_engine(config: ServerConfig) -> tuple[ServedModel, JaxEngine]:
    """Load the model, and return its properties, which requests are checked against, with its engine.

    Raises ValueError if it has no tokenizer, or lacks the chat format that the settings name.
    """
    path = Path(config.model)
    model, params, tokenizer = load_model(path)
    if tokenizer is None:
        raise ValueError(f"{path}: found no tokenizer, so there is no text to continue")
    served = ServedModel(
        name=path.resolve().name if config.model_name is None else config.model_name,
        tokenizer=tokenizer,
        chat_format=find_served_format(config, path, tokenizer),
        vocab_size=model.config.vocab_size,
        max_seq_len=model.config.max_seq_len,
        max_tokens=config.max_tokens,
    )
    engine = JaxEngine(
        model,
        params,
        max_queue=config.max_queue,
        max_batch=config.max_batch,
        timeout_s=config.request_timeout_s,
    )
    return served, engine
