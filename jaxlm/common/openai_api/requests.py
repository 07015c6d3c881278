"""Requests in the form of OpenAI's API, checked and turned into tasks for the engine.

A request is refused if it uses a field that is not supported here and would change the answer.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.history import read_history
from jaxlm.common.openai_api.json_body import Fields, parse_object, refuse
from jaxlm.common.openai_api.neutral_fields import check_neutral
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.tasks import Task, TokenPenalties
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

MOST_STOPS = 64
LONGEST_STOP = 256  # characters
LARGEST_TEMPERATURE = 2.0
LARGEST_CLIENT_SEED = 2**64 - 1
# The range of the official API.
LARGEST_TOKEN_PENALTY = 2.0


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

    def check_name(self, name: str) -> None:
        """Raise ApiError (404) if the name is not that of the model."""
        if name != self.name:
            message = f"model: found {name[:100]!r}, expected {self.name!r}, the only model of this server"
            raise ApiError(404, message, param="model", code="model_not_found")


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A checked request: the task for the engine, and the form of the answer."""

    task: Task
    stream: bool
    include_usage: bool


def read_chat(body: bytes, model: ServedModel) -> CompletionRequest:
    """Read a request of /v1/chat/completions. Raises ApiError that names the field."""
    fields = _fields(body, model)
    if model.chat_format is None:
        message = (
            f"{model.name}: found no chat format that is known here; use /v1/completions, which continues a text, or "
            f"start the server with the chat_format that the model was trained with"
        )
        raise ApiError(400, message, code="no_chat_format")
    prompt = _chat_prompt(fields.take("messages"), model.tokenizer, model.chat_format)
    _check_prompt(prompt, model, "messages")
    reply = ReplyText(ReplyStream(model.tokenizer, model.chat_format), _stops(fields))
    return _request(fields, model, prompt, stop_ids(model.tokenizer, model.chat_format), reply)


def read_completion(body: bytes, model: ServedModel) -> CompletionRequest:
    """Read a request of /v1/completions. Raises ApiError that names the field."""
    fields = _fields(body, model)
    prompt = _text_prompt(fields.take("prompt"), model.tokenizer)
    _check_prompt(prompt, model, "prompt")
    stream = TextStream(model.tokenizer)
    for token in prompt:  # the prompt may end inside a character or after a space, where the answer continues
        stream.add(token)
    return _request(fields, model, prompt, model.tokenizer.stop_ids, ReplyText(stream, _stops(fields)))


def _fields(body: bytes, model: ServedModel) -> Fields:
    fields = Fields(parse_object(body))
    name = fields.take("model")
    if not isinstance(name, str):
        raise refuse("model", name, f"{model.name!r}")
    model.check_name(name)
    return fields


def _chat_prompt(messages: object, tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    try:
        return encode_generation_prompt(read_history(messages, chat_format), tokenizer, chat_format)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None


def _text_prompt(prompt: object, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one, which evaluation programs send
    if isinstance(prompt, str):
        try:
            return tokenizer.encode_to_continue(prompt)
        except ValueError as error:
            raise ApiError(400, str(error), param="prompt") from None
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return prompt
    raise refuse("prompt", prompt, "one text or one list of token ids, alone or as a list of one")


def _stops(fields: Fields) -> Sequence[str]:
    found = fields.take("stop")
    stops = [] if found is None else [found] if isinstance(found, str) else found
    valid = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not valid or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise refuse("stop", found, f"a text, or at most {MOST_STOPS} of them, of 1 to {LONGEST_STOP} characters")
    return stops


def _check_prompt(prompt: list[int], model: ServedModel, param: str) -> None:
    try:
        check_prompt(prompt, model.vocab_size, model.max_seq_len)
    except ValueError as error:
        code = "context_length_exceeded" if len(prompt) >= model.max_seq_len else None
        raise ApiError(400, str(error), param=param, code=code) from None


def _request(
    fields: Fields, model: ServedModel, prompt: list[int], ends: Sequence[int], reply: ReplyText
) -> CompletionRequest:
    """Read the fields that both routes share."""
    sampling = _sampling(fields, model, model.max_seq_len - len(prompt))
    stream, include_usage = fields.flag("stream"), _include_usage(fields)
    penalties = _token_penalties(fields)
    check_neutral(fields.rest)
    task = Task(prompt=prompt, sampling=sampling, penalties=penalties, stop_ids=frozenset(ends), reply=reply)
    return CompletionRequest(task=task, stream=stream, include_usage=include_usage)


def _sampling(fields: Fields, model: ServedModel, room: int) -> Sampling:
    """Read the sampling settings of the official API, plus those that other servers have besides."""
    names = ("max_completion_tokens", "max_tokens")
    asked = [most for name in names if (most := fields.integer(name, 1, None, unset=-1)) is not None]
    if len(set(asked)) > 1:
        raise refuse("max_tokens", asked[1], f"{asked[0]}, the value of max_completion_tokens; send only one of them")
    seed = fields.integer("seed", 0, LARGEST_CLIENT_SEED, unset=-1)
    # Some clients send a number close to 0 instead of 0, which takes the likeliest token.
    temperature = fields.number("temperature", 1.0, 0.0, LARGEST_TEMPERATURE)
    return Sampling(
        max_tokens=min(asked[0] if asked else model.max_tokens, room),
        temperature=temperature if temperature >= SMALLEST_TEMPERATURE else 0.0,
        top_p=max(SMALLEST_TOP_P, fields.number("top_p", 1.0, 0.0, 1.0)),
        top_k=min(fields.integer("top_k", 0, None, unset=-1) or 0, model.vocab_size),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, SMALLEST_PENALTY, LARGEST_PENALTY),
        # Equal seeds stay equal.
        seed=secrets.randbelow(LARGEST_SEED) if seed is None else seed % (LARGEST_SEED + 1),
    )


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
