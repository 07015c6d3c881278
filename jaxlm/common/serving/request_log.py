"""One line of the log for every request: method, path, status, tokens, seconds; never what it says."""

import logging
import sys
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxlm.common.openai_api.errors import shown_path
from jaxlm.common.serving.engine import Generation

# The key of the connection's scope under which a route leaves its generations.
GENERATIONS = "generations"
LONGEST_METHOD = 20  # characters
log = logging.getLogger("jaxlm.serving")


class RequestLog:
    """ASGI middleware that logs every request once it is answered, or its client has left."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, is_whole, has_left = time.monotonic(), 0, False, False

        async def watch_receive() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or (message["type"] == "http.disconnect" and not is_whole)
            return message

        async def watch_send(message: Message) -> None:
            nonlocal status, is_whole
            status = message.get("status", status)
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, watch_receive, watch_send)
        finally:
            words = [f"{scope['method'][:LONGEST_METHOD]} {shown_path(scope)} {status or 500}"]
            generations: list[Generation] = scope.get(GENERATIONS, [])
            if generations:
                prompts = {id(each.task.prompt): len(each.task.prompt) for each in generations}
                given, written = sum(prompts.values()), sum(each.num_tokens for each in generations)
                words.append(f"{given} tokens in, {written} out")
            words.append(f"{time.monotonic() - started:.2f} s")
            if has_left:
                words.append("the client left")
            log.info(", ".join(words))


class _QuietHandler(logging.StreamHandler):
    """A handler that survives the end of its terminal or pipe."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line if it cannot be written."""
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handleError(record)


def start_log() -> None:
    """Write the lines to stderr, with the time of day."""
    handler = _QuietHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
