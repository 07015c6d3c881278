"""The command `jaxlm server`: one JAX model behind OpenAI's HTTP API."""

from jaxlm.common.openai_api.requests import ServedModel
from jaxlm.common.serving.command import serve, served_model
from jaxlm.load import load_model
from jaxlm.ops.machine.user_cache import keep_programs
from jaxlm.server.engine import JaxEngine
from jaxlm.server.server_config import ServerConfig


def main(config: ServerConfig) -> None:
    """Serve a model with OpenAI's API from JAX until interrupted. A run directory is served too."""
    keep_programs()
    serve(config, lambda: open_engine(config))


def open_engine(config: ServerConfig) -> tuple[ServedModel, JaxEngine]:
    """Load the model, and return its properties, which requests are checked against, with its engine.

    Raises ValueError as `served_model` does.
    """
    model, params, tokenizer = load_model(config.model)
    served = served_model(config, tokenizer, vocab_size=model.config.vocab_size, max_seq_len=model.config.max_seq_len)
    engine = JaxEngine(
        model,
        params,
        max_queue=config.max_queue,
        max_batch=config.max_batch,
        timeout_s=config.request_timeout_s,
    )
    return served, engine
