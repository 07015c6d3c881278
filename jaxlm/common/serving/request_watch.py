"""The facts of a request once it is answered, or its client has left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxlm.common.openai_api.errors import shown_path
from jaxlm.common.serving.engine import Generation

# The key of the connection's scope under which a route leaves its generations.
GENERATIONS = "generations"


@dataclass(frozen=True, kw_only=True)
class AnsweredRequest:
    """A request that has ended."""

    method: str
    path: str
    """The path as routes see it."""
    sent_path: str
    """The path as it was sent, in printable ASCII."""
    status: int
    started: float
    """Seconds of the monotonic clock."""
    seconds: float
    has_left: bool
    """True if the client closed the connection before the end of the answer."""
    generations: Sequence[Generation]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts; a prompt of several choices counts once."""
        return sum({id(each.task.prompt): len(each.task.prompt) for each in self.generations}.values())

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts whose caches were in memory."""
        return sum({id(each.task.prompt): each.cached_tokens for each in self.generations}.values())

    @property
    def generated_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(each.num_tokens for each in self.generations)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the request to its first token, None where it has none."""
        times = [each.first_token_at for each in self.generations if each.first_token_at is not None]
        return min(times) - self.started if times else None


class RequestWatch:
    """ASGI middleware that tells `listeners` of every request that has ended."""

    def __init__(self, app: ASGIApp, listeners: Sequence[Callable[[AnsweredRequest], None]]):
        self._app, self._listeners = app, listeners

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell of its end."""
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
            answered = AnsweredRequest(
                method=scope["method"],
                path=scope["path"],
                sent_path=shown_path(scope),
                status=status or 500,
                started=started,
                seconds=time.monotonic() - started,
                has_left=has_left,
                generations=scope.get(GENERATIONS, []),
            )
            for listener in self._listeners:
                listener(answered)
