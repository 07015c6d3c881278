"""The web application: NiceGUI's pages behind the guard, served on one socket."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from jaxlm.common.serving.command import is_every_address, listen
from jaxlm.common.serving.guard import host_names
from jaxlm.studio.guard import TOKEN, Guard, kept_key
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.studio import Studio
from jaxlm.studio.studio_config import AddressConfig, StudioConfig


def run(config: StudioConfig, folders: Folders, key: str | None) -> None:
    """Serve the studio until it is interrupted. `key` None takes that of the root, which a first start makes."""
    folders.state.mkdir(exist_ok=True)
    key = key or kept_key(folders.state / "key")
    studio = Studio(folders, Path.cwd())

    def tell(address: str) -> None:
        print(f"studio of {folders.root}: {address}", flush=True)
        print("Ctrl-C ends the studio; what it has started goes on.", flush=True)

    with contextlib.closing(studio):
        serve(config, lambda port: make_app(studio, config, port, key), tell, key)


def serve(
    config: AddressConfig,
    make: Callable[[int], FastAPI],
    tell: Callable[[str], None],
    key: str | None,
    prefix: str = "",
) -> None:
    """Serve the application that `make` returns for a port until it is interrupted. `tell` is told its address."""
    with contextlib.closing(listen(config.host, config.port)) as listener:
        port = listener.getsockname()[1]
        app = make(port)
        host = "127.0.0.1" if is_every_address(config.host) else config.host
        token = "" if key is None else f"?{TOKEN}={key}"
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}{prefix}/{token}")
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", ws_max_size=1 << 20, timeout_graceful_shutdown=2, lifespan="on")
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def empty_app(state: Path) -> FastAPI:
    """Return an application without pages; NiceGUI, which is imported from then on, keeps its files below `state`."""
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(state / "pages"))
    logging.getLogger("nicegui").setLevel(logging.ERROR)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)


def make_app(studio: Studio, config: StudioConfig, port: int, key: str | None) -> FastAPI:
    """Return the application with all pages."""
    app = empty_app(studio.folders.state)
    from nicegui import app as pages
    from nicegui import background_tasks, ui

    from jaxlm.studio.pages import compare, fine_tune, job_list, new_model, run_view, runs_table, shelf, talk

    most_bytes = config.max_upload_mb * 1_000_000
    new_model.add_page(studio, most_bytes)
    fine_tune.add_page(studio, most_bytes)
    run_view.add_page(studio)
    runs_table.add_page(studio)
    talk.add_page(studio)
    compare.add_page(studio)
    job_list.add_page(studio)
    shelf.add_page(studio)
    pages.on_startup(lambda: background_tasks.create(_close_idle(studio)))
    ui.run_with(
        app, title="jaxlm studio", favicon="🜂", dark=studio.dark, show_welcome_message=False, reconnect_timeout=20.0
    )
    app.add_middleware(
        Guard,
        hosts=host_names(port, [config.host, *config.allowed_hosts]),
        key=key,
        cookie=f"jaxlm_studio_{port}",
        max_body_bytes=most_bytes + (1 << 20),
    )
    return app


async def _close_idle(studio: Studio) -> None:
    """End servers of models that nobody asks any more, for as long as the studio runs; check settings soon."""
    await asyncio.to_thread(studio.settings.warm)
    while True:
        await asyncio.sleep(60)
        studio.servers.close_idle()
