"""The demo: the page Talk alone, with one model, for others."""

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from jaxlm.common.model_name import shown_name
from jaxlm.common.serving.guard import host_names
from jaxlm.studio.guard import Guard
from jaxlm.studio.pages.app import empty_app, serve
from jaxlm.studio.processes.jobs import Jobs
from jaxlm.studio.processes.model_server import ModelServers, Talker
from jaxlm.studio.reading.shown_text import shown_line
from jaxlm.studio.studio_config import DemoConfig

# Bytes of a request, at most; what is typed comes by a websocket, which has its own bound.
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Demo:
    """A model that is shown, and its server."""

    name: str
    talker: Talker
    servers: ModelServers
    has_chat: bool
    state: Path
    """Folder of temporary files."""


@dataclass
class _Look:
    """The look of the page of one visitor."""

    dark: bool | None = None


def run(config: DemoConfig, key: str | None) -> None:
    """Serve the demo until it is interrupted. The model is opened first; ValueError says why it cannot be.

    What is written goes into a temporary folder.
    """
    name, talker = shown_line(shown_name(Path(config.model)), 80), Talker(Path(config.model))
    with tempfile.TemporaryDirectory(prefix="jaxlm-demo-") as folder:
        servers = ModelServers(Jobs(Path(folder) / "jobs"), Path(folder), Path.cwd())
        print(f"opening {name} ...", flush=True)
        with contextlib.closing(servers):
            has_chat = asyncio.run(servers.open(talker)).has_chat
            demo = Demo(name, talker, servers, has_chat, Path(folder))

            def tell(address: str) -> None:
                print(f"demo of {name}: {address}", flush=True)

            serve(config, lambda port: make_app(demo, config, port, key), tell, key, config.prefix)


def make_app(demo: Demo, config: DemoConfig, port: int, key: str | None) -> FastAPI:
    """Return the application with its one page."""
    app = empty_app(demo.state)
    from nicegui import ui

    from jaxlm.studio.pages.talk import TalkLimits, TalkPage
    from jaxlm.studio.parts.frame import frame

    limits = TalkLimits(config.max_prompt_chars, config.max_tokens)
    modes = ("chat", "text") if demo.has_chat else ("text",)

    @ui.page("/")
    def page() -> None:
        with frame(_Look(), "", brand=demo.name, ways=()):
            models = {demo.name: demo.talker}
            TalkPage(demo.servers, models, demo.name, limits=limits, modes=modes, is_folded=True)

    ui.run_with(app, title=demo.name, favicon="🜂", dark=None, show_welcome_message=False, reconnect_timeout=20.0)
    app.add_middleware(
        Guard,
        hosts=host_names(port, [config.host, *config.allowed_hosts]),
        key=key,
        cookie=f"jaxlm_demo_{port}",
        max_body_bytes=_MOST_BYTES,
        prefix=config.prefix,
        frame_ancestors=config.public,
    )
    return app
