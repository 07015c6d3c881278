"""Requests in the form of OpenAI's API, checked and turned into tasks for an engine.

A request is refused if it uses a field that is not supported here and would change the answer.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from jaxlm.common.grammar.constraint import GrammarConstraint
from jaxlm.common.grammar.grammars import Grammars
from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.history import read_history
from jaxlm.common.openai_api.json_body import Fields, parse_object, refuse
from jaxlm.common.openai_api.neutral_fields import check_neutral
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.response_format import read_response_format
from jaxlm.common.openai_api.responses import ChatReply, Reply, TextReply
from jaxlm.common.openai_api.tasks import Task, TokenPenalties
from jaxlm.common.openai_api.token_spelling import TokenSpelling
from jaxlm.common.openai_api.tools import OfferedTools, read_tool_history, read_tools, speaks_of_tools
from jaxlm.common.sampling import (
    LARGEST_PENALTY,
    LARGEST_SEED,
    SMALLEST_PENALTY,
    SMALLEST_TEMPERATURE,
    SMALLEST_TOP_P,
    Sampling,
    check_prompt,
)
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.messages import encode_generation_prompt, stop_ids
from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.tokenizers.tokenizer import TextStream, Tokenizer
from shared_tokenizer.tools.tool_calls import CallReader
from shared_tokenizer.tools.tool_format import ToolFormat, find_tool_format

MOST_STOPS = 64
LONGEST_STOP = 256  # characters
LARGEST_TEMPERATURE = 2.0
LARGEST_CLIENT_SEED = 2**64 - 1
# The ranges of the official API.
LARGEST_TOKEN_PENALTY = 2.0
LARGEST_BIAS = 100.0
MOST_LOGPROBS = 20
# Texts of one request: prompts times n.
MOST_CHOICES = 128


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The properties of the model that requests are checked against."""

    name: str
    tokenizer: Tokenizer
    chat_format: ChatFormat | None
    """None if the model has no chat template that can be used."""
    vocab_size: int
    max_seq_len: int
    max_tokens: int
    """Tokens of an answer at most, if the request names no limit."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that a request may ask for in the place of the model."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a request may ask for."""
        return self.name, *self.adapters

    def adapter_of(self, name: str) -> str | None:
        """Return the adapters that a name stands for, None for the model as it is. Raises ApiError (404) on others."""
        if name not in self.names:
            expected = " or ".join(map(repr, self.names))
            only = ", the only model of this server" if not self.adapters else ""
            message = f"model: found {name[:100]!r}, expected {expected}{only}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return None if name == self.name else name

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text: of a model of chats also those that end a turn."""
        tokenizer, chat_format = self.tokenizer, self.chat_format
        return frozenset(tokenizer.stop_ids if chat_format is None else stop_ids(tokenizer, chat_format))

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """The way in which the model's chat template writes tools, None where it does not."""
        return None if self.chat_format is None else find_tool_format(self.chat_format)

    @cached_property
    def grammars(self) -> Grammars:
        """The grammars that texts of this model can follow."""
        return Grammars(self.tokenizer, self.vocab_size, self.ends)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A checked request: a task for each choice of the answer, and its form."""

    tasks: list[Task]
    """Choices in their order: all of the first prompt, then those of the next."""
    reply: Reply
    stream: bool
    include_usage: bool


def read_chat(body: bytes, model: ServedModel) -> CompletionRequest:
    """Read a request of /v1/chat/completions. Raises ApiError that names the field."""
    name, fields = _fields(body, model)
    if model.chat_format is None:
        message = (
            f"{model.name}: found no chat format that is known here; use /v1/completions, which continues a text, or "
            f"start the server with the chat_format that the model was trained with"
        )
        raise ApiError(400, message, code="no_chat_format")
    tokenizer, chat_format = model.tokenizer, model.chat_format
    offered = read_tools(fields, chat_format.name, model.tool_format is not None)
    messages = fields.take("messages")
    prompt = _chat_prompt(messages, model, chat_format, offered)
    _check_prompt(prompt, model, "messages")
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    reports = fields.flag("logprobs")
    if top and not reports:
        raise refuse("top_logprobs", top, "no such field without logprobs true")
    stops, spelled, constraint, form = _stops(fields), dict[int, str](), None, None
    if offered is not None and model.tool_format is not None:
        form = model.tool_format.form
        marks = (form.begin, form.end)
        special = {mark: token for mark, token in tokenizer.special_tokens.items() if mark in marks}
        spelled = {token: mark for mark, token in special.items()}
        constraint = offered.constraint(form, lambda: model.grammars, special)
    tasks = _tasks(
        fields,
        model,
        model.adapter_of(name),
        [prompt],
        lambda prompt: ReplyText(ReplyStream(tokenizer, chat_format, spelled), stops),
        logprobs=(top or 0) if reports else None,
        constraint=constraint,
    )
    readers = [CallReader(form, offered.names, offered.most) for _ in tasks] if form and offered else None
    reply = ChatReply(name, TokenSpelling(tokenizer), model.ends, readers)
    return _request(fields, tasks, reply)


def read_completion(body: bytes, model: ServedModel) -> CompletionRequest:
    """Read a request of /v1/completions. Raises ApiError that names the field."""
    name, fields = _fields(body, model)
    tokenizer = model.tokenizer
    given = _prompts(fields.take("prompt"))
    prompts = [_prompt_ids(prompt, tokenizer) for prompt in given]
    echo, logprobs = fields.flag("echo"), _count_of_logprobs(fields)
    stops = _stops(fields)

    def reply_text(prompt: list[int]) -> ReplyText:
        stream = TextStream(tokenizer)
        for token in prompt:  # it may end inside a character or after a space, where the answer continues
            stream.add(token)
        return ReplyText(stream, stops)

    tasks = _tasks(
        fields,
        model,
        model.adapter_of(name),
        prompts,
        reply_text,
        logprobs=logprobs,
        echo=echo,
        param="prompt",
    )
    echoed = None
    if echo:
        texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in given]
        echoed = [text for text in texts for _ in range(len(tasks) // len(prompts))]
    reply = TextReply(name, TokenSpelling(tokenizer), echoed)
    return _request(fields, tasks, reply)


def _fields(body: bytes, model: ServedModel) -> tuple[str, Fields]:
    """Return the name that a request asks for, and its other fields."""
    fields = Fields(parse_object(body))
    name = fields.take("model")
    if not isinstance(name, str):
        raise refuse("model", name, " or ".join(map(repr, model.names)))
    model.adapter_of(name)
    return name, fields


def _chat_prompt(
    messages: object, model: ServedModel, chat_format: ChatFormat, offered: OfferedTools | None
) -> list[int]:
    tokenizer = model.tokenizer
    if model.tool_format is not None and (offered is not None or speaks_of_tools(messages)):
        turns = read_tool_history(messages)
        try:
            return model.tool_format.encode(turns, offered.tools if offered else [], tokenizer)
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None
    try:
        return encode_generation_prompt(read_history(messages, chat_format), tokenizer, chat_format)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None


def _prompts(found: object) -> list[str | list[int]]:
    """Return the prompts of a request: a text or a list of ids, or several of one kind."""
    prompts: list[Any] = found if isinstance(found, list) and found and isinstance(found[0], str | list) else [found]
    is_text = all(isinstance(prompt, str) for prompt in prompts)
    if not is_text and not all(isinstance(prompt, list) and _are_ids(prompt) for prompt in prompts):
        raise refuse("prompt", found, "a text or a list of token ids, or a list of either kind")
    if len(prompts) > MOST_CHOICES:
        raise refuse("prompt", f"{len(prompts)} prompts", f"at most {MOST_CHOICES}")
    return cast(list[str | list[int]], prompts)


def _are_ids(prompt: list[object]) -> bool:
    return all(type(token) is int for token in prompt)


def _prompt_ids(prompt: str | list[int], tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    try:
        return tokenizer.encode_to_continue(prompt)
    except ValueError as error:
        raise ApiError(400, str(error), param="prompt") from None


def _count_of_logprobs(fields: Fields) -> int | None:
    """Return the number of likeliest tokens that /v1/completions is asked for; false asks for none."""
    found = fields.take("logprobs")
    if found is None or found is False:
        return None
    if type(found) is not int or not 0 <= found <= MOST_LOGPROBS:
        raise refuse("logprobs", found, f"a whole number from 0 to {MOST_LOGPROBS}")
    return found


def _stops(fields: Fields) -> Sequence[str]:
    found = fields.take("stop")
    stops = [] if found is None else [found] if isinstance(found, str) else found
    valid = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not valid or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise refuse("stop", found, f"a text, or at most {MOST_STOPS} of them, of 1 to {LONGEST_STOP} characters")
    return stops


def _check_prompt(prompt: list[int], model: ServedModel, param: str, *, room: int = 1) -> None:
    """Raise ApiError where a prompt does not leave `room` for an answer, or holds ids of another vocabulary."""
    try:
        check_prompt(prompt, model.vocab_size, model.max_seq_len + 1 - room)
    except ValueError as error:
        code = "context_length_exceeded" if len(prompt) >= model.max_seq_len else None
        raise ApiError(400, str(error), param=param, code=code) from None


def _tasks(
    fields: Fields,
    model: ServedModel,
    adapter: str | None,
    prompts: Sequence[list[int]],
    reply_text: Callable[[list[int]], ReplyText],
    *,
    logprobs: int | None,
    echo: bool = False,
    param: str = "messages",
    constraint: GrammarConstraint | None = None,
) -> list[Task]:
    """Read the fields that say what to generate, and return a task for each choice of each prompt."""
    count = fields.integer("n", 1, MOST_CHOICES) or 1
    if count * len(prompts) > MOST_CHOICES:
        raise refuse("n", count, f"at most {MOST_CHOICES // len(prompts)} for {len(prompts)} prompts")
    scores_prompt = echo and logprobs is not None
    asked = _max_tokens(fields, model, 0 if echo else 1)
    # One token more is known from the scores of a prompt that fills the context.
    room = 0 if asked == 0 or (scores_prompt and asked == 1) else 1
    for prompt in prompts:
        _check_prompt(prompt, model, param, room=room)
    sampling, penalties = _sampling(fields, model), _token_penalties(fields)
    bias = _logit_bias(fields.take("logit_bias"), model.vocab_size)
    asked_form = fields.take("response_format")
    form = read_response_format(asked_form, lambda: model.grammars)
    if form is not None and constraint is not None:
        raise refuse("response_format", asked_form, "no such field where tool_choice asks for a call")
    constraint = constraint or form
    return [
        Task(
            prompt=prompt,
            adapter=adapter,
            generates=asked > 0,
            # Choices of one prompt differ, and a prompt has the same ones alone and with others.
            sampling=replace(
                sampling,
                max_tokens=max(1, min(asked, model.max_seq_len - len(prompt))),
                seed=(sampling.seed + number) % (LARGEST_SEED + 1),
            ),
            penalties=penalties,
            logit_bias=bias,
            logprobs=logprobs,
            scores_prompt=scores_prompt or asked == 0,
            constraint=None if constraint is None else constraint.copied(),
            stop_ids=model.ends,
            reply=reply_text(prompt),
        )
        for prompt in prompts
        for number in range(count)
    ]


def _request(fields: Fields, tasks: list[Task], reply: Reply) -> CompletionRequest:
    """Read the fields that say how to answer; no others may be left."""
    stream, include_usage = fields.flag("stream"), _include_usage(fields)
    check_neutral(fields.rest)
    return CompletionRequest(tasks=tasks, reply=reply, stream=stream, include_usage=include_usage)


def _max_tokens(fields: Fields, model: ServedModel, low: int) -> int:
    """Return the tokens of an answer at most."""
    names = ("max_completion_tokens", "max_tokens")
    asked = [most for name in names if (most := fields.integer(name, low, None, unset=-1)) is not None]
    if len(set(asked)) > 1:
        raise refuse("max_tokens", asked[1], f"{asked[0]}, the value of max_completion_tokens; send only one of them")
    return asked[0] if asked else model.max_tokens


def _sampling(fields: Fields, model: ServedModel) -> Sampling:
    """Read the sampling settings of the official API, plus those that other servers have besides."""
    seed = fields.integer("seed", 0, LARGEST_CLIENT_SEED, unset=-1)
    # Some clients send a number close to 0 instead of 0, which takes the likeliest token.
    temperature = fields.number("temperature", 1.0, 0.0, LARGEST_TEMPERATURE)
    return Sampling(
        temperature=temperature if temperature >= SMALLEST_TEMPERATURE else 0.0,
        top_p=max(SMALLEST_TOP_P, fields.number("top_p", 1.0, 0.0, 1.0)),
        top_k=min(fields.integer("top_k", 0, None, unset=-1) or 0, model.vocab_size),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, SMALLEST_PENALTY, LARGEST_PENALTY),
        # Equal seeds stay equal.
        seed=secrets.randbelow(LARGEST_SEED) if seed is None else seed % (LARGEST_SEED + 1),
    )


def _logit_bias(found: object, vocab_size: int) -> dict[int, float]:
    """Return the amounts by token id; JSON writes the ids as texts."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise refuse("logit_bias", found, "an object of token ids and numbers")
    known = {}
    for name, value in found.items():
        if not (name.isascii() and name.isdigit() and int(name) < vocab_size):
            raise refuse("logit_bias", name, f"a token id from 0 to {vocab_size - 1}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_BIAS:
            raise refuse("logit_bias", value, f"a number from {-LARGEST_BIAS:g} to {LARGEST_BIAS:g} for token {name}")
        known[int(name)] = float(value)
    return known


def _token_penalties(fields: Fields) -> TokenPenalties:
    low, high = -LARGEST_TOKEN_PENALTY, LARGEST_TOKEN_PENALTY
    return TokenPenalties(
        presence=fields.number("presence_penalty", 0.0, low, high),
        frequency=fields.number("frequency_penalty", 0.0, low, high),
    )


def _include_usage(fields: Fields) -> bool:
    options = fields.take("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise refuse("stream_options", options, "an object")
    found = Fields(options)
    include_usage = found.flag("include_usage")
    found.flag("include_obfuscation")  # padding against eavesdroppers: it says nothing
    check_neutral(found.rest, "stream_options.")
    return include_usage
