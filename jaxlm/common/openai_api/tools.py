"""The tools of a chat: what a client offers, which of them the answer must call, and the conversation about them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.common.grammar.constraint import GrammarConstraint
from jaxlm.common.grammar.grammars import Grammars, json_rule
from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.history import blank_text, read_message
from jaxlm.common.openai_api.json_body import Fields, refuse
from jaxlm.common.openai_api.neutral_fields import check_neutral
from jaxlm.common.openai_api.response_format import follow_grammar
from shared_tokenizer.tools.tool_calls import CallForm

MOST_TOOLS = 128
LONGEST_NAME = 64
WAY_OUT = "leave them out, or serve a model whose chat template writes tools"


@dataclass(frozen=True)
class OfferedTools:
    """The tools of a request."""

    tools: Sequence[dict[str, Any]]
    """As the client wrote them, for the chat template."""
    forced: Sequence[str]
    """Names of those of which the answer has to call one; none where it may do as it likes."""
    most: int | None
    """Calls in one answer at most."""

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return [tool["function"]["name"] for tool in self.tools]

    def constraint(
        self, form: CallForm, grammars: Callable[[], Grammars], special: Mapping[str, int]
    ) -> GrammarConstraint | None:
        """Return the constraint to calls of the forced tools, None where none is.

        `special` are the ids of special tokens. Raises ApiError (400) where parameters cannot be followed.
        """
        if not self.forced:
            return None
        chosen = [tool["function"] for tool in self.tools if tool["function"]["name"] in self.forced]
        return follow_grammar(
            lambda: grammars().follow(_call_grammar(chosen, form, special, self.most), "tools"), "tools"
        )


def _call_grammar(
    functions: Sequence[dict[str, Any]], form: CallForm, special: Mapping[str, int], most: int | None
) -> str:
    """Return a grammar of calls in a form, in llguidance's Lark."""
    rules = [
        json_rule(
            f"call{number}",
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    form.arguments: {"type": "object"} | (function.get("parameters") or {}),
                },
                "required": ["name", form.arguments],
                "additionalProperties": False,
            },
        )
        for number, function in enumerate(functions)
    ]
    call = " | ".join(f"call{number}" for number in range(len(functions)))
    begin, end = (f"<[{special[mark]}]>" if mark in special else json.dumps(mark) for mark in (form.begin, form.end))
    more = "" if most == 1 else "*"
    if form.is_list:
        again = f' (", " call){more}' if more else ""
        start = f'start: {begin} SPACE? "[" call{again} "]"'
    elif form.begin:
        whole = f'{begin} "\\n" call "\\n" {end}'
        start = f"start: {whole}{f' (LINE {whole})*' if more else ''}\nLINE: /\\n/"
    else:
        start = "start: SPACE? call"
    return f"{start}\nSPACE: / /\ncall: {call}\n{''.join(rules)}"


def read_tools(fields: Fields, chat_format: str, writes_tools: bool) -> OfferedTools | None:
    """Take `tools`, `tool_choice` and `parallel_tool_calls`; None where no tool is offered.

    Raises ApiError (400), also where tools are offered to a chat format, named `chat_format`, that does not write them.
    """
    found, choice = fields.take("tools"), fields.take("tool_choice")
    parallel = fields.take("parallel_tool_calls")
    if not isinstance(parallel, bool | None):
        raise refuse("parallel_tool_calls", parallel, "true or false")
    if found in (None, []):
        if choice not in (None, "none", "auto"):
            raise refuse("tool_choice", choice, "'none' or 'auto' without tools")
        return None
    if choice == "none":
        return None
    if not writes_tools:
        message = f"tools: found tools, which the chat format {chat_format} of this model does not write; {WAY_OUT}"
        raise ApiError(400, message, param="tools")
    if not isinstance(found, list) or len(found) > MOST_TOOLS:
        raise refuse("tools", found, f"a list of at most {MOST_TOOLS} tools")
    tools = [_read_tool(tool, f"tools[{number}]") for number, tool in enumerate(found)]
    names = [tool["function"]["name"] for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise refuse(f"tools[{number}].function.name", name, "another name than that of an earlier tool")
    return OfferedTools(tools, _read_choice(choice, names), 1 if parallel is False else None)


def _read_tool(found: object, where: str) -> dict[str, Any]:
    if not isinstance(found, dict) or found.get("type") != "function" or not isinstance(found.get("function"), dict):
        raise refuse(where, found, "an object of the type 'function' with a function")
    function = found["function"]
    name, parameters = function.get("name"), function.get("parameters")
    if not _is_name(name):
        raise refuse(f"{where}.function.name", name, f"1 to {LONGEST_NAME} of the characters a-z, A-Z, 0-9, _, - and .")
    if not isinstance(function.get("description"), str | None):
        raise refuse(f"{where}.function.description", function["description"], "a text")
    if not isinstance(parameters, dict | None):
        raise refuse(f"{where}.function.parameters", parameters, "a JSON schema, an object")
    rest = {key: value for key, value in function.items() if key not in ("name", "description", "parameters", "strict")}
    check_neutral(rest, f"{where}.function.")
    schema = parameters or {"type": "object", "properties": {}}
    # Templates expect all three.
    read = {"name": name, "description": function.get("description") or "", "parameters": schema}
    return {"type": "function", "function": read}


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        return False
    return name.isascii() and all(character.isalnum() or character in "_-." for character in name)


def _read_choice(choice: object, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the tools of which the answer has to call one."""
    if choice in (None, "auto"):
        return ()
    if choice == "required":
        return names
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        raise refuse("tool_choice", choice, "'none', 'auto', 'required', or the function of one of the tools")
    return [str(name)]


def speaks_of_tools(messages: object) -> bool:
    """Return True if a conversation holds calls of tools, or what they returned."""
    found = messages if isinstance(messages, list) else []
    return any(
        isinstance(message, dict) and (message.get("role") == "tool" or message.get("tool_calls")) for message in found
    )


def read_tool_history(value: object) -> list[dict[str, Any]]:
    """Return the messages of a conversation with tools as chat templates know them.

    Raises ApiError (400) on what is no such conversation: a result without its call, a last message that asks nothing.
    """
    if not isinstance(value, list) or not value:
        raise refuse("messages", value, "a list of messages")
    turns, open_calls, count = list[dict[str, Any]](), dict[str, tuple[str, str]](), 0
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "tool":
            turns.append(_read_result(message, where, open_calls))
        elif role == "assistant" and message.get("tool_calls"):
            calls = _read_calls(message["tool_calls"], f"{where}.tool_calls", count)
            count += len(calls)
            open_calls |= {call_id: (call["id"], call["function"]["name"]) for call_id, call in calls.items()}
            rest = {name: field for name, field in message.items() if name != "tool_calls"}
            content = blank_text(rest.get("content"))
            text = read_turn(rest, where).content if content is None else content
            turns.append({"role": "assistant", "content": text, "tool_calls": list(calls.values())})
        else:
            turn = read_turn(message, where)
            if turn is not None:
                turns.append({"role": turn.role, "content": turn.content})
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        found = turns[-1]["role"] if turns else "none"
        raise ApiError(
            400,
            f"messages: found {found} as the role of the last message, expected user or tool",
            param="messages",
        )
    return turns


def read_turn(message: object, where: str) -> Any:
    """Return a turn without tools; None for a system message of null. Raises ApiError (400)."""
    try:
        return read_message(message, where)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None


def _read_calls(found: object, where: str, count: int) -> dict[str, dict[str, Any]]:
    """Return calls by their id; in a template they have ids of nine digits, which all of them accept."""
    if not isinstance(found, list):
        raise _wrong(where, found, "a list of calls")
    calls = dict[str, dict[str, Any]]()
    for number, call in enumerate(found):
        place = f"{where}[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(place, call, "a call of a function with a name")
        call_id = call.get("id")
        if not isinstance(call_id, str) or call_id in calls:
            raise _wrong(f"{place}.id", call_id, "an id that no other call has")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise _wrong(f"{place}.function.arguments", function.get("arguments"), "a JSON object, as text")
        written = {"name": function["name"], "arguments": arguments}
        calls[call_id] = {"type": "function", "id": f"{count + number:09d}", "function": written}
    return calls


def _read_result(message: dict[str, Any], where: str, open_calls: dict[str, tuple[str, str]]) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or call_id not in open_calls:
        raise _wrong(f"{where}.tool_call_id", call_id, "the id of an earlier call that has no result yet")
    kept = {name: field for name, field in message.items() if name not in ("tool_call_id", "role")}
    content = blank_text(message.get("content"))
    text = read_turn(kept | {"role": "user"}, where).content if content is None else content
    given_id, name = open_calls.pop(call_id)
    return {"role": "tool", "content": text, "tool_call_id": given_id, "name": name}


def _wrong(where: str, found: object, expected: str) -> ApiError:
    error = refuse(where, found, expected)
    return ApiError(400, str(error), param="messages")
