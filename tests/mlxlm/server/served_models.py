"""Tiny models to serve, and a server of them in a thread."""

import contextlib
import dataclasses
import tempfile
import threading
import time
from pathlib import Path

import uvicorn

from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.openai_api.requests import ServedModel
from jaxlm.common.serving.app import make_app
from jaxlm.common.serving.command import listen
from jaxlm.common.serving.connections import server_settings
from jaxlm.common.serving.guard import host_names
from mlxlm.load import load_model
from mlxlm.server.engine import MlxEngine
from shared_tokenizer.chat.formats import CHATML
from tests.conftest import TINY, VARIANTS

CONTEXT = 256
NAME = "tiny"


def save_model(directory, tokenizer, variant="dense", template=CHATML.template):
    """Write an artifact of random weights with a tokenizer and a chat template."""
    ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    config = dataclasses.replace(TINY, max_seq_len=CONTEXT, **ends, **VARIANTS[variant])
    with tempfile.TemporaryDirectory() as files:
        tokenizer.save(Path(files))
        if template is not None:
            (Path(files) / "chat_template.jinja").write_text(template)
        save_artifact(directory, config, "latent", initial_weights(config, 1), tokenizer_dir=Path(files))
    return directory


def open_model(directory, tokenizer, variant="dense"):
    """Return the model without its tokenizer."""
    return load_model(save_model(directory, tokenizer, variant))[0]


def served(tokenizer, chat_format=CHATML):
    """Return the properties that requests are checked against."""
    return ServedModel(
        name=NAME, tokenizer=tokenizer, chat_format=chat_format, vocab_size=300, max_seq_len=CONTEXT, max_tokens=16
    )


def make_engine(model, **options):
    defaults = {"max_queue": 8, "max_batch": 4, "timeout_s": 60, "prompt_cache_bytes": 1 << 24}
    return MlxEngine({None: model}, **defaults | {"prefill_step_size": 64} | options)


class Slow:
    """A model that sleeps in every call, and records the number of calls and the most tokens of one call."""

    def __init__(self, model, seconds):
        self._model, self._seconds = model, seconds
        self.config, self.make_cache = model.config, model.make_cache
        self.calls = self.most_tokens = 0

    def __call__(self, ids, cache):
        self.calls += 1
        self.most_tokens = max(self.most_tokens, ids.size)
        time.sleep(self._seconds)
        return self._model(ids, cache)


def app_of(
    model,
    tokenizer,
    *,
    port=8080,
    api_key=None,
    max_body_bytes=10_000,
    chat_format=CHATML,
    hosts=("server.example",),
    **options,
):
    engine = make_engine(model, **options)
    hosts = host_names(port, hosts)
    return make_app(served(tokenizer, chat_format), engine, hosts=hosts, api_key=api_key, max_body_bytes=max_body_bytes)


@contextlib.contextmanager
def running(model, tokenizer, **options):
    """Run a server of a model in a thread and yield its port."""
    with running_app(lambda port: app_of(model, tokenizer, port=port, **options)) as port:
        yield port


@contextlib.contextmanager
def running_app(make):
    """Run a server of the application that `make(port)` returns in a thread, and yield its port."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(server_settings(make(port)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()
