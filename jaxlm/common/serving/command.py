"""A server: its checks before it listens, and its start; a framework opens the model."""

import contextlib
import ipaddress
import json
import os
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxlm.common.model_name import shown_name
from jaxlm.common.openai_api.requests import ServedModel
from jaxlm.common.serving.app import make_app
from jaxlm.common.serving.connections import run
from jaxlm.common.serving.engine import Engine
from jaxlm.common.serving.guard import host_names, origin_names
from jaxlm.common.serving.request_log import start_log
from jaxlm.common.serving.serving_config import ServingConfig
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.model_chat_format import choose_chat_format
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

KEY_VARIABLE = "MLXLM_API_KEY"


def serve(config: ServingConfig, open_engine: Callable[[], tuple[ServedModel, Engine]]) -> None:
    """Serve a model with OpenAI's API until interrupted. The model is opened once the address is known to be free."""
    api_key = find_api_key(config)
    check_reach(config, api_key)
    origins = origin_names(config.allowed_origins)
    with contextlib.closing(listen(config.host, config.port)) as listener:
        port = listener.getsockname()[1]
        model, engine = open_engine()
        app = make_app(
            model,
            engine,
            hosts=host_names(port, [config.host, *config.allowed_hosts]),
            api_key=api_key,
            max_body_bytes=config.max_body_bytes,
            origins=origins,
        )
        url = server_url(config.host, port)
        print(f"{model.name}: {url}\n{example(url, model, has_key=api_key is not None)}", flush=True)
        start_log()
        run(app, engine, listener)


def server_url(host: str, port: int) -> str:
    """Return the address that clients on this machine use."""
    if is_every_address(host):
        host = "127.0.0.1" if ":" not in host else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def example(url: str, model: ServedModel, *, has_key: bool) -> str:
    """Return a command for a shell that asks the model something."""
    asked = {"messages": [{"role": "user", "content": "Hello"}]} if model.chat_format else {"prompt": "Once"}
    body = json.dumps({"model": model.name, **asked}, ensure_ascii=False)
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if has_key else ""
    route = "chat/completions" if model.chat_format else "completions"
    return f"curl {url}/{route}{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def find_api_key(config: ServingConfig) -> str | None:
    """Return the key of the settings or the environment. Raises ValueError if a header cannot carry it."""
    api_key = os.environ.get(KEY_VARIABLE) if config.api_key is None else config.api_key
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or not api_key.split() == [api_key]):
        raise ValueError(f"api_key: found {len(api_key)} characters, expected one word of printable ASCII characters")
    return api_key


def check_reach(config: ServingConfig, api_key: str | None) -> None:
    """Raise ValueError if other machines could use the server without a key, or if no client could name its host."""
    if is_local(config.host):
        return
    if api_key is None:
        raise ValueError(
            f"host: found {config.host}, where other machines can reach this server, and no api_key; set "
            f"{KEY_VARIABLE}, or leave host at 127.0.0.1"
        )
    if is_every_address(config.host) and not config.allowed_hosts:
        raise ValueError(
            f"host: found {config.host}, which clients cannot use as a name, and no allowed_hosts; give allowed_hosts: "
            f"the names or addresses that clients use"
        )


def is_local(host: str) -> bool:
    """Return True if only this machine can reach the address."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_every_address(host: str) -> bool:
    """Return True if the address stands for all addresses of this machine."""
    address = _address(host)
    return not host if address is None else address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ValueError on an unknown host, OSError if the address is in use or foreign."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host: found {host!r}, expected an address or name of this machine ({error})") from error
    return socket.create_server(address[:2], family=family)


def served_model(
    config: ServingConfig,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_seq_len: int,
    adapter_path: str | None = None,
    adapters: Sequence[str] = (),
) -> ServedModel:
    """Return the properties of a model that requests are checked against.

    Raises ValueError if it has no tokenizer, or lacks the chat format that the settings name.
    """
    path = Path(config.model)
    if tokenizer is None:
        raise ValueError(f"{path}: found no tokenizer, so there is no text to continue")
    return ServedModel(
        name=shown_name(path) if config.model_name is None else config.model_name,
        tokenizer=tokenizer,
        chat_format=_served_format(config, path, tokenizer, adapter_path),
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        max_tokens=config.max_tokens,
        adapters=tuple(adapters),
    )


def _served_format(
    config: ServingConfig, path: Path, tokenizer: Tokenizer, adapter_path: str | None
) -> ChatFormat | None:
    """Return the chat format of a model, None where it has none that can be used.

    Raises ValueError if the model lacks the tokens of the format that the settings name.
    """
    try:
        return choose_chat_format(path, tokenizer, choice=config.chat_format, adapter_path=adapter_path)
    except ValueError as error:
        if config.chat_format != "auto":
            raise
        print(f"no chat: {error}", flush=True)
        return None
