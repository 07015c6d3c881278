"""Answers in the form of OpenAI's API, complete or as server-sent events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from typing import Any

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.tasks import Event, Finish, Piece, PromptScores, Task, TokenScore
from jaxlm.common.openai_api.token_spelling import TokenSpelling
from shared_tokenizer.tools.tool_calls import CallReader, ToolCall

# JSON has no infinity. The log-probability of an impossible token, as OpenAI writes it.
SMALLEST_LOGPROB = -9999.0
# The number of a choice, and what has happened to it.
ChoiceEvent = tuple[int, Event]


class Reply(ABC):
    """The answer to one request, in the form of its route. Its state is that of one answer."""

    PREFIX: str
    """Prefix of the answer's id."""
    COMPLETE: str
    """Type of a complete answer, its field `object`."""
    CHUNK: str
    """Type of an event."""

    def __init__(self, model_name: str, spelling: TokenSpelling):
        self._head = {"id": f"{self.PREFIX}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
        self._spelling = spelling

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """Return the fields of a choice that hold the complete text."""

    @abstractmethod
    def _piece(self, text: str | None) -> dict[str, Any]:
        """Return the fields of a choice that hold a piece of the text; None stands for the end."""

    @abstractmethod
    def _logprobs(self, number: int, tokens: Sequence[TokenScore | int]) -> dict[str, Any] | None:
        """Return the log-probabilities of a choice's next tokens; a token without one is an id."""

    def opening(self, number: int) -> list[dict[str, Any]]:
        """Return the events before the first piece of a choice."""
        return []

    def echoed(self, number: int) -> str:
        """Return the text that a choice begins with."""
        return ""

    def complete(self, tasks: Sequence[Task], events: Sequence[Sequence[Event]]) -> dict[str, Any]:
        """Return the complete answer, of the events of each choice."""
        choices, ends = [], []
        for number, (task, found) in enumerate(zip(tasks, events, strict=True)):
            text = self.echoed(number) + "".join(event.text for event in found if isinstance(event, Piece))
            tokens = [token for event in found for token in _scored(task, event)]
            logprobs = None if task.logprobs is None else self._logprobs(number, tokens)
            (end,) = [event for event in found if isinstance(event, Finish)]
            ends.append(end)
            choices.append(self._whole(number, text, end, logprobs))
        return self._head | {"object": self.COMPLETE, "choices": choices, "usage": _usage(tasks, ends)}

    def piece(self, number: int, task: Task, event: Event) -> dict[str, Any] | None:
        """Return the event for a piece of the text; None where it says nothing."""
        text = event.text if isinstance(event, Piece) else ""
        tokens = _scored(task, event)
        if not text and not tokens:
            return None
        logprobs = None if task.logprobs is None else self._logprobs(number, tokens)
        return self._event([_choice(number, self._piece(text), None, logprobs)])

    def closing(self, number: int, end: Finish) -> list[dict[str, Any]]:
        """Return the events after the last piece of a choice."""
        return [self._event([_choice(number, self._piece(None), end.reason, None)])]

    def _whole(self, number: int, text: str, end: Finish, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """Return a choice of a complete answer."""
        return _choice(number, self._content(text), end.reason, logprobs)

    def usage(self, tasks: Sequence[Task], ends: Sequence[Finish]) -> dict[str, Any]:
        """Return the event with the numbers of tokens, after all others."""
        return self._event([]) | {"usage": _usage(tasks, ends)}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": self.CHUNK, "choices": choices}


class ChatReply(Reply):
    """An answer of /v1/chat/completions. The tokens that end a turn are not among those with log-probabilities.

    Where tools are offered, `readers` has a reader of calls for each choice: a call leaves the text.
    """

    PREFIX, COMPLETE, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model_name: str,
        spelling: TokenSpelling,
        ends: Collection[int],
        readers: Sequence[CallReader] | None = None,
    ):
        super().__init__(model_name, spelling)
        self._ends, self._readers = ends, readers

    def opening(self, number: int) -> list[dict[str, Any]]:
        """Return the event with the role, before any text."""
        return [self._event([_choice(number, {"delta": {"role": "assistant", "content": ""}}, None, None)])]

    def _whole(self, number: int, text: str, end: Finish, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        if self._readers is None:
            return super()._whole(number, text, end, logprobs)
        said, calls = self._readers[number].add(text)
        rest, last = self._readers[number].end()
        content = self._content(said + rest)
        if found := [_call(call) for call in [*calls, *last]]:
            content["message"] |= {"content": said + rest or None, "tool_calls": found}
        return _choice(number, content, self._reason(number, end), logprobs)

    def piece(self, number: int, task: Task, event: Event) -> dict[str, Any] | None:
        """Return the event for a piece of the text, and for the calls that it completes; None where it says nothing."""
        if self._readers is None or not isinstance(event, Piece):
            return super().piece(number, task, event)
        before = self._readers[number].count
        text, calls = self._readers[number].add(event.text)
        found = super().piece(number, task, replace(event, text=text))
        if not calls:
            return found
        found = found or self._event([_choice(number, {"delta": {}}, None, None)])
        found["choices"][0]["delta"]["tool_calls"] = _numbered(calls, before)
        return found

    def closing(self, number: int, end: Finish) -> list[dict[str, Any]]:
        """Return the event with what was held back, and the last one of a choice."""
        if self._readers is None:
            return super().closing(number, end)
        before, events = self._readers[number].count, list[dict[str, Any]]()
        text, calls = self._readers[number].end()
        delta = ({"content": text} if text else {}) | ({"tool_calls": _numbered(calls, before)} if calls else {})
        if delta:
            events.append(self._event([_choice(number, {"delta": delta}, None, None)]))
        return [*events, self._event([_choice(number, {"delta": {}}, self._reason(number, end), None)])]

    def _reason(self, number: int, end: Finish) -> str:
        calls = self._readers is not None and self._readers[number].count and end.reason == "stop"
        return "tool_calls" if calls else end.reason

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}

    def _logprobs(self, number: int, tokens: Sequence[TokenScore | int]) -> dict[str, Any] | None:
        scored = [token for token in tokens if isinstance(token, TokenScore) and token.token not in self._ends]
        content = [
            self._entry(each.token, each.logprob)
            | {"top_logprobs": [self._entry(token, logprob) for token, logprob in each.likeliest]}
            for each in scored
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        spelling = self._spelling
        return {"token": spelling.text(token), "bytes": [*spelling.bytes_of(token)], "logprob": _finite(logprob)}


class TextReply(Reply):
    """An answer of /v1/completions, after the texts of `echoed`, one per choice.

    The token that ended a text is among those with log-probabilities, though it adds no text: programs that score
    prompts count on one token more than the prompt has.
    """

    PREFIX, COMPLETE, CHUNK = "cmpl", "text_completion", "text_completion"

    def __init__(self, model_name: str, spelling: TokenSpelling, echoed: Sequence[str] | None):
        super().__init__(model_name, spelling)
        self._echoed = echoed
        self._offsets: dict[int, int] = {}

    def echoed(self, number: int) -> str:
        """Return the prompt of a choice, where it is asked for."""
        return "" if self._echoed is None else self._echoed[number]

    def opening(self, number: int) -> list[dict[str, Any]]:
        """Return the event with the prompt, where it is asked for."""
        text = self.echoed(number)
        return [self._event([_choice(number, self._piece(text), None, None)])] if text else []

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _piece(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def _logprobs(self, number: int, tokens: Sequence[TokenScore | int]) -> dict[str, Any] | None:
        offset = self._offsets.get(number, 0)
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in tokens:
            token = each if isinstance(each, int) else each.token
            text = self._spelling.text(token)
            found["tokens"].append(text)
            found["text_offset"].append(offset)
            offset += len(text)
            if isinstance(each, int):  # the first token of a prompt, which nothing precedes
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            found["token_logprobs"].append(_finite(each.logprob))
            texts = self._spelling.texts(token for token, _ in each.likeliest)
            logprobs = [_finite(logprob) for _, logprob in each.likeliest]
            found["top_logprobs"].append(dict(zip(texts, logprobs, strict=True)))
        self._offsets[number] = offset
        return found


def _scored(task: Task, event: Event) -> list[TokenScore | int]:
    """Return the tokens that an event brings, if they are asked for: of a prompt all, the first one without a score."""
    if task.logprobs is None or isinstance(event, Finish):
        return []
    return [task.prompt[0], *event.tokens] if isinstance(event, PromptScores) else list(event.tokens)


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _numbered(calls: Sequence[ToolCall], first: int) -> list[dict[str, Any]]:
    return [{"index": number} | _call(call) for number, call in enumerate(calls, first)]


def _finite(logprob: float) -> float:
    return max(logprob, SMALLEST_LOGPROB)


def _choice(number: int, content: dict[str, Any], reason: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": number} | content | {"logprobs": logprobs, "finish_reason": reason}


def _usage(tasks: Sequence[Task], ends: Sequence[Finish]) -> dict[str, Any]:
    """Return the numbers of tokens; a prompt with several choices counts once."""
    prompts = {id(task.prompt): end for task, end in zip(tasks, ends, strict=True)}
    prompt_tokens = sum(end.prompt_tokens for end in prompts.values())
    completion_tokens = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in prompts.values())},
    }


async def collect(events: AsyncIterator[ChoiceEvent], tasks: Sequence[Task], reply: Reply) -> dict[str, Any]:
    """Return the complete answer, once all generations have ended. Raises ApiError if one failed."""
    found: list[list[Event]] = [[] for _ in tasks]
    async for number, event in events:
        found[number].append(event)
    return reply.complete(tasks, found)


async def stream(
    events: AsyncIterator[ChoiceEvent], tasks: Sequence[Task], reply: Reply, include_usage: bool
) -> AsyncIterator[str]:
    """Yield the answer as server-sent events; an error during generation is the last of them."""
    ends: list[Finish | None] = [None] * len(tasks)
    for number in range(len(tasks)):
        for event in reply.opening(number):
            yield _line(event)
    try:
        async for number, event in events:
            if isinstance(event, Finish):
                ends[number] = event
                for closing in reply.closing(number, event):
                    yield _line(closing)
            elif (piece := reply.piece(number, tasks[number], event)) is not None:
                yield _line(piece)
        if include_usage:
            yield _line(reply.usage(tasks, [end for end in ends if end is not None]))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _line(error.body())


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def model_object(name: str, created: int) -> dict[str, Any]:
    """Return an entry of /v1/models; `created` is in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "local"}
