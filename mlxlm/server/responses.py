"""Answers in the form of OpenAI's API, whole and as server-sent events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from mlxlm.server.engine import Finish
from mlxlm.server.errors import ApiError


class Reply(ABC):
    """The answer to one request."""

    PREFIX: str
    WHOLE: str
    CHUNK: str

    def __init__(self, model_name: str):
        self._head = {"id": f"{self.PREFIX}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """What a choice holds of a whole text."""

    @abstractmethod
    def _piece(self, text: str | None) -> dict[str, Any]:
        """What a choice holds of a piece of it, None at the end."""

    def opening(self) -> list[dict[str, Any]]:
        """Events before the first piece."""
        return []

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        """The answer at once."""
        choice = _choice(self._content(text), finish.reason)
        return self._head | {"object": self.WHOLE, "choices": [choice], "usage": _usage(finish)}

    def piece(self, text: str) -> dict[str, Any]:
        """An event with a piece of the text."""
        return self._event([_choice(self._piece(text), None)])

    def closing(self, finish: Finish, include_usage: bool) -> list[dict[str, Any]]:
        """Events after the last piece."""
        last = self._event([_choice(self._piece(None), finish.reason)])
        return [last, self._event([]) | {"usage": _usage(finish)}] if include_usage else [last]

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": self.CHUNK, "choices": choices}


class ChatReply(Reply):
    """An answer of /v1/chat/completions."""

    PREFIX, WHOLE, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """The role, before any text."""
        return [self._event([_choice({"delta": {"role": "assistant", "content": ""}}, None)])]

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}


class TextReply(Reply):
    """An answer of /v1/completions."""

    PREFIX, WHOLE, CHUNK = "cmpl", "text_completion", "text_completion"

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


async def gather(events: AsyncIterator[str | Finish], reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    pieces: list[str] = []
    async for event in events:
        if isinstance(event, Finish):
            return reply.whole("".join(pieces), event)
        pieces.append(event)
    raise AssertionError("a generation ends with a Finish or an error")


async def stream(events: AsyncIterator[str | Finish], reply: Reply, include_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events; an error on the way is the last of them."""
    for event in reply.opening():
        yield _line(event)
    try:
        async for event in events:
            if isinstance(event, Finish):
                for last in reply.closing(event, include_usage):
                    yield _line(last)
            else:
                yield _line(reply.piece(event))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _line(error.body())


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def model_object(name: str, created: int) -> dict[str, Any]:
    """An entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "local"}
