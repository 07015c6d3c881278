"""The command `mlxlm server`: one model behind OpenAI's HTTP API."""

from collections.abc import Sequence
from pathlib import Path

from jaxlm.common.openai_api.requests import ServedModel
from jaxlm.common.serving.command import serve, served_model
from mlxlm.load import adapted, load_model
from mlxlm.model.language_model import LanguageModel
from mlxlm.server.cache_room import cache_room
from mlxlm.server.engine import MlxEngine
from mlxlm.server.server_config import ServerConfig
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def main(config: ServerConfig) -> None:
    """Serve a model with OpenAI's API until interrupted."""
    serve(config, lambda: open_engine(config))


def open_engine(config: ServerConfig) -> tuple[ServedModel, MlxEngine]:
    """Load the model, and return its properties, which requests are checked against, with its engine.

    Raises ValueError as `served_model` does, and on adapters or a draft model that do not fit.
    """
    model, tokenizer = load_model(config.model, adapter_path=config.adapter_path)
    adapters = _named_adapters(config.adapter, config.adapter_path)
    served = served_model(
        config,
        tokenizer,
        vocab_size=model.config.vocab_size,
        max_seq_len=model.config.max_seq_len,
        adapter_path=config.adapter_path,
        adapters=list(adapters),
    )
    if served.name in adapters:
        raise ValueError(f"adapter: found the name {served.name!r}, which is the model's; give one of them another")
    room = cache_room(model, config.prompt_cache_bytes)
    print(room.summary(config.max_batch, model.config.max_seq_len), flush=True)
    models = {None: model, **{name: adapted(model, directory) for name, directory in adapters.items()}}
    engine = MlxEngine(
        models,
        max_queue=config.max_queue,
        max_batch=config.max_batch,
        timeout_s=config.request_timeout_s,
        prompt_cache_bytes=config.prompt_cache_bytes,
        prefill_step_size=config.prefill_step_size,
        draft=_open_draft(config, served.tokenizer),
        room=room,
    )
    return served, engine


def _open_draft(config: ServerConfig, tokenizer: Tokenizer) -> LanguageModel | None:
    """Open the draft model. Raises ValueError where its tokenizer is another one."""
    if config.draft_model is None:
        return None
    draft, found = load_model(config.draft_model)
    if found is not None and found.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"draft_model: {config.draft_model}: found tokenizer {found.fingerprint[:12]}..., expected the model's "
            f"{tokenizer.fingerprint[:12]}...; name a draft model with the same tokenizer"
        )
    return draft


def _named_adapters(given: Sequence[str], adapter_path: str | None) -> dict[str, Path]:
    """Return the directories of adapters by name. Raises ValueError where a name is missing or given twice."""
    found: dict[str, Path] = {}
    for each in given:
        name, _, directory = each.partition("=")
        if not name or not directory or name in found:
            raise ValueError(f"adapter: found {each!r}, expected name=directory, each name once")
        found[name] = Path(directory)
    if found and adapter_path is not None:
        raise ValueError(
            "adapter: found adapter_path too, which changes the model that the others are for; give that directory a "
            "name as well"
        )
    return found
