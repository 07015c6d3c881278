"""The routes of the server: models, chat and completions of OpenAI's API, answered by one engine; its tokenizer."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxlm.common.openai_api.errors import ApiError, answer_api_error, answer_fault, answer_http_error
from jaxlm.common.openai_api.json_body import read_body
from jaxlm.common.openai_api.requests import CompletionRequest, ServedModel, read_chat, read_completion
from jaxlm.common.openai_api.responses import collect, model_object, stream
from jaxlm.common.openai_api.tokenizer_requests import detokenize, tokenize, tokenizer_info
from jaxlm.common.serving.engine import Engine, Generation, merged_events
from jaxlm.common.serving.guard import OPEN_ROUTE, Guard
from jaxlm.common.serving.metrics import Metrics
from jaxlm.common.serving.request_log import log_request
from jaxlm.common.serving.request_watch import GENERATIONS, RequestWatch


def make_app(
    model: ServedModel,
    engine: Engine,
    *,
    hosts: Collection[str],
    api_key: str | None,
    max_body_bytes: int,
    origins: Collection[str] = (),
) -> Starlette:
    """Return the application, which starts and stops the engine.

    `hosts` are the accepted values of Host, `origins` those of Origin besides the server's own.
    """
    metrics = Metrics(engine)
    routes = _Routes(model, engine, metrics, max_body_bytes)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()
        await run_in_threadpool(engine.join)

    served = [
        _route(OPEN_ROUTE, "GET", routes.health),
        _route("/v1/models", "GET", routes.models),
        _route("/v1/models/{name:path}", "GET", routes.model),
        _route("/v1/chat/completions", "POST", routes.chat),
        _route("/v1/completions", "POST", routes.completion),
        _route("/tokenize", "POST", routes.tokenize),
        _route("/detokenize", "POST", routes.detokenize),
        _route("/tokenizer_info", "GET", routes.tokenizer_info),
        _route("/metrics", "GET", routes.metrics),
    ]
    metrics.paths = frozenset(route.path for route in served)
    app = Starlette(
        routes=served,
        middleware=[
            Middleware(_PlainPath),
            Middleware(RequestWatch, listeners=[log_request, metrics.count]),
            Middleware(Guard, hosts=hosts, api_key=api_key, origins=origins),
        ],
        exception_handlers={ApiError: answer_api_error, HTTPException: answer_http_error, Exception: answer_fault},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _route(path: str, method: str, answer: Callable[[Request], Awaitable[Response]]) -> Route:
    """Return a route that also says which methods it has, to OPTIONS."""
    methods = ["GET", "HEAD"] if method == "GET" else [method]

    async def answer_or_list(http: Request) -> Response:
        if http.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join([*methods, "OPTIONS"])})
        return await answer(http)

    return Route(path, answer_or_list, methods=[*methods, "OPTIONS"])


class _PlainPath:
    """ASGI middleware for clients that put a slash at the end of a path, or two between the parts of their address."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = re.sub("/+", "/", scope["path"]).rstrip("/") or "/"
        await self._app(scope, receive, send)


class _Routes:
    def __init__(self, model: ServedModel, engine: Engine, metrics: Metrics, max_body_bytes: int):
        self._model, self._engine, self._metrics, self._max_body_bytes = model, engine, metrics, max_body_bytes
        self._created = int(time.time())

    async def health(self, http: Request) -> Response:
        return JSONResponse({"status": "ok"}) if self._engine.is_alive else JSONResponse({"status": "stopped"}, 503)

    async def models(self, http: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [model_object(name, self._created) for name in self._model.names]}
        )

    async def model(self, http: Request) -> Response:
        name = http.path_params["name"]
        self._model.adapter_of(name)
        return JSONResponse(model_object(name, self._created))

    async def metrics(self, http: Request) -> Response:
        text = await run_in_threadpool(self._metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def tokenize(self, http: Request) -> Response:
        body = await read_body(http, self._max_body_bytes)
        return JSONResponse(await run_in_threadpool(tokenize, body, self._model))

    async def detokenize(self, http: Request) -> Response:
        body = await read_body(http, self._max_body_bytes)
        return JSONResponse(await run_in_threadpool(detokenize, body, self._model))

    async def tokenizer_info(self, http: Request) -> Response:
        return JSONResponse(tokenizer_info(self._model))

    async def chat(self, http: Request) -> Response:
        return await self._complete(http, read_chat)

    async def completion(self, http: Request) -> Response:
        return await self._complete(http, read_completion)

    async def _complete(self, http: Request, read: Callable[[bytes, ServedModel], CompletionRequest]) -> Response:
        body = await read_body(http, self._max_body_bytes)
        request = await run_in_threadpool(read, body, self._model)
        tasks, reply = request.tasks, request.reply
        generations = http.scope[GENERATIONS] = self._engine.submit(*tasks)
        events = merged_events(generations)
        if request.stream:
            return _EventStream(generations, stream(events, tasks, reply, request.include_usage))
        async with _cancelled_when_gone(http.receive, generations):
            return JSONResponse(await collect(events, tasks, reply))


class _EventStream(StreamingResponse):
    """A stream of server-sent events, which cancels its generations when the client leaves."""

    def __init__(self, generations: Sequence[Generation], events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _cancelled_when_gone(receive, self._generations):
            await self.stream_response(send)


@contextlib.asynccontextmanager
async def _cancelled_when_gone(receive: Receive, generations: Sequence[Generation]) -> AsyncIterator[None]:
    """Cancel the generations when the client closes the connection, and when the answer has ended in any way."""

    def cancel() -> None:
        for generation in generations:
            generation.cancel()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        cancel()
