"""The tokenizer over HTTP, in the form of vLLM: texts and chats -> ids, ids -> text, its special tokens.

lm-evaluation-harness counts the tokens of its prompts with it (`tokenizer_backend=remote`).
"""

from typing import Any

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.history import read_history
from jaxlm.common.openai_api.json_body import Fields, parse_object, refuse
from jaxlm.common.openai_api.neutral_fields import check_neutral
from jaxlm.common.openai_api.requests import ServedModel
from jaxlm.common.openai_api.token_spelling import TokenSpelling
from shared_tokenizer.chat.messages import encode_chat, encode_generation_prompt
from shared_tokenizer.chat.template import chat_template


def tokenize(body: bytes, model: ServedModel) -> dict[str, Any]:
    """Return the ids of a text or a chat. Raises ApiError that names the field.

    They are those of /v1/completions and /v1/chat/completions; `add_special_tokens` false leaves out the begin token of
    a text. A text that is nothing but the spelling of a special token is its id, by which clients learn the ids.
    """
    fields = _fields(body, model)
    prompt, messages = fields.take("prompt"), fields.take("messages")
    if (prompt is None) == (messages is None):
        raise refuse("prompt", prompt, "a text, or messages in its place")
    ids = _text_ids(prompt, fields, model) if messages is None else _chat_ids(messages, fields, model)
    spelled = fields.flag("return_token_strs")
    check_neutral(fields.rest)
    spelling = TokenSpelling(model.tokenizer)
    texts = [spelling.text(token) for token in ids] if spelled else None
    return {"count": len(ids), "max_model_len": model.max_seq_len, "tokens": ids, "token_strs": texts}


def detokenize(body: bytes, model: ServedModel) -> dict[str, str]:
    """Return the text of ids, special tokens spelled out. Raises ApiError that names the field."""
    fields = _fields(body, model)
    ids = fields.take("tokens")
    check_neutral(fields.rest)
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < model.vocab_size for token in ids):
        raise refuse("tokens", ids, f"a list of token ids from 0 to {model.vocab_size - 1}")
    tokenizer = model.tokenizer
    names = {token: text for text, token in tokenizer.special_tokens.items()}
    text, run = "", list[int]()
    for token in ids:
        if token in names:
            text += tokenizer.decode(run) + names[token]
            run = []
        else:
            run.append(token)
    return {"prompt": text + tokenizer.decode(run)}


def tokenizer_info(model: ServedModel) -> dict[str, Any]:
    """Return the special tokens by their part, the longest prompt in tokens, and the chat template."""
    tokenizer, chat_format = model.tokenizer, model.chat_format
    names = {token: text for text, token in tokenizer.special_tokens.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if tokenizer.bos_id is None else names.get(tokenizer.bos_id),
        "eos_token": names.get(tokenizer.eos_id),
        "pad_token": None if tokenizer.pad_id is None else names.get(tokenizer.pad_id),
        "model_max_length": model.max_seq_len,
        "vocab_size": tokenizer.vocab_size,
        "chat_template": None if chat_format is None else chat_template(chat_format, tokenizer),
    }


def _fields(body: bytes, model: ServedModel) -> Fields:
    fields = Fields(parse_object(body))
    name = fields.take("model")
    if name is not None:
        if not isinstance(name, str):
            raise refuse("model", name, " or ".join(map(repr, model.names)))
        model.adapter_of(name)
    return fields


def _text_ids(prompt: object, fields: Fields, model: ServedModel) -> list[int]:
    if not isinstance(prompt, str):
        raise refuse("prompt", prompt, "a text")
    adds_start = fields.take("add_special_tokens")
    if not isinstance(adds_start, bool | None):
        raise refuse("add_special_tokens", adds_start, "true or false")
    tokenizer = model.tokenizer
    token = tokenizer.special_tokens.get(prompt)
    ids = tokenizer.encode(prompt) if token is None else [token]
    return ids if adds_start is False else [*tokenizer.start_ids, *ids]


def _chat_ids(messages: object, fields: Fields, model: ServedModel) -> list[int]:
    chat_format = model.chat_format
    if chat_format is None:
        message = f"{model.name}: found no chat format that is known here; send the text as prompt"
        raise ApiError(400, message, param="messages", code="no_chat_format")
    if fields.flag("add_special_tokens"):
        raise refuse("add_special_tokens", True, "false or no such field: a chat begins with its begin token")
    adds_prompt = fields.take("add_generation_prompt")
    if not isinstance(adds_prompt, bool | None):
        raise refuse("add_generation_prompt", adds_prompt, "true or false")
    try:
        turns = read_history(messages, chat_format)
        if adds_prompt is False:
            return encode_chat(turns, model.tokenizer, chat_format).ids
        return encode_generation_prompt(turns, model.tokenizer, chat_format)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None
