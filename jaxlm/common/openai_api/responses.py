"""Answers in the form of OpenAI's API, complete or as server-sent events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.tasks import Event, Finish, Piece


class Reply(ABC):
    """The answer to one request, in the form of its route."""

    PREFIX: str
    """Prefix of the answer's id."""
    COMPLETE: str
    """Type of a complete answer, its field `object`."""
    CHUNK: str
    """Type of an event."""

    def __init__(self, model_name: str):
        self._head = {"id": f"{self.PREFIX}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """Return the fields of a choice that hold the complete text."""

    @abstractmethod
    def _piece(self, text: str | None) -> dict[str, Any]:
        """Return the fields of a choice that hold a piece of the text; None stands for the end."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the events before the first piece."""
        return []

    def complete(self, text: str, finish: Finish) -> dict[str, Any]:
        """Return the complete answer."""
        choice = _choice(self._content(text), finish.reason)
        return self._head | {"object": self.COMPLETE, "choices": [choice], "usage": _usage(finish)}

    def piece(self, text: str) -> dict[str, Any]:
        """Return an event with a piece of the text."""
        return self._event([_choice(self._piece(text), None)])

    def closing(self, finish: Finish, include_usage: bool) -> list[dict[str, Any]]:
        """Return the events after the last piece."""
        last = self._event([_choice(self._piece(None), finish.reason)])
        return [last, self._event([]) | {"usage": _usage(finish)}] if include_usage else [last]

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": self.CHUNK, "choices": choices}


class ChatReply(Reply):
    """An answer of /v1/chat/completions."""

    PREFIX, COMPLETE, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """Return the event with the role, before any text."""
        return [self._event([_choice({"delta": {"role": "assistant", "content": ""}}, None)])]

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}


class TextReply(Reply):
    """An answer of /v1/completions."""

    PREFIX, COMPLETE, CHUNK = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _piece(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0} | content | {"logprobs": None, "finish_reason": reason}


def _usage(finish: Finish) -> dict[str, Any]:
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finish.cached_tokens},
    }


async def collect(events: AsyncIterator[Event], reply: Reply) -> dict[str, Any]:
    """Return the complete answer, once the generation has ended. Raises ApiError if it failed."""
    pieces: list[str] = []
    async for event in events:
        if isinstance(event, Finish):
            return reply.complete("".join(pieces), event)
        if isinstance(event, Piece):
            pieces.append(event.text)
    raise AssertionError("a generation ends with a Finish or an error")


async def stream(events: AsyncIterator[Event], reply: Reply, include_usage: bool) -> AsyncIterator[str]:
    """Yield the answer as server-sent events; an error during generation is the last of them."""
    for event in reply.opening():
        yield _line(event)
    try:
        async for event in events:
            if isinstance(event, Finish):
                for last in reply.closing(event, include_usage):
                    yield _line(last)
            elif isinstance(event, Piece) and event.text:
                yield _line(reply.piece(event.text))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _line(error.body())


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def model_object(name: str, created: int) -> dict[str, Any]:
    """Return an entry of /v1/models; `created` is in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "local"}
