"""The calls of tools in a reply: the forms in which models write them, and how a reply is read as it comes."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

FormName: TypeAlias = Literal["hermes", "llama-3.1", "mistral"]


@dataclass(frozen=True)
class CallForm:
    """A form in which calls are written, each as a JSON object of a name and arguments.

    begin, end: what stands before and after; special tokens of some tokenizers. Both are empty where a reply that is a
    JSON object is a call.
    arguments: the key of the arguments.
    is_list: True if the objects stand in one list.
    """

    name: FormName
    begin: str
    end: str
    arguments: str
    is_list: bool = False


# Of Hermes 2 Pro, Qwen2.5, Qwen3, SmolLM3; of Llama 3.1 and 3.2; of Mistral v0.3 and later.
HERMES = CallForm("hermes", "<tool_call>", "</tool_call>", "arguments")
LLAMA_3_1 = CallForm("llama-3.1", "", "", "parameters")
MISTRAL = CallForm("mistral", "[TOOL_CALLS]", "", "arguments", is_list=True)
CALL_FORMS = (HERMES, MISTRAL, LLAMA_3_1)


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool: its name, and its arguments, a JSON object as text."""

    name: str
    arguments: str


class CallReader:
    """Reads a reply piece by piece: text that may become a call is held back, and is text again where it does not."""

    def __init__(self, form: CallForm, names: Collection[str], most: int | None = None):
        """`names` are those of the tools: what names another one is text. At most `most` calls are read."""
        self._form, self._names, self._most = form, frozenset(names), most
        self._held = self._spaces = ""
        self._has_text = False
        self.count = 0
        """Calls so far."""

    def add(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add a piece of the reply, and return the text and the calls that are certain by now."""
        self._held += text
        return self._read(is_last=False)

    def end(self) -> tuple[str, list[ToolCall]]:
        """Return what was held back at the end of the reply."""
        return self._read(is_last=True)

    def _read(self, *, is_last: bool) -> tuple[str, list[ToolCall]]:
        out, calls, form = "", list[ToolCall](), self._form
        while self._held:
            start = self._start()
            out += self._text(self._held[:start])
            self._held = self._held[start:]
            if not self._held.startswith(form.begin) or (not form.begin and not self._held.startswith("{")):
                break  # it may become a call
            end = self._held.find(form.end, len(form.begin)) if form.end else -1
            if end < 0 and not is_last:
                break
            stop = len(self._held) if end < 0 else end
            whole = self._held[: stop + (len(form.end) if end >= 0 else 0)]
            found = self._calls(self._held[len(form.begin) : stop])
            self._held = self._held[len(whole) :]
            if found is None:
                out += self._text(whole)
            else:
                self._spaces = ""  # around calls they mean nothing
                self.count += len(found)
                calls += found
        if is_last:
            out += self._text(self._held)
            out += "" if self.count else self._spaces
            self._held = self._spaces = ""
        return out, calls

    def _start(self) -> int:
        """Return where in the held text a call begins or may begin."""
        begin = self._form.begin
        if not begin:
            text = self._held.lstrip()
            may_begin = not self._has_text and (not text or text.startswith("{"))
            return len(self._held) - len(text) if may_begin else len(self._held)
        found = self._held.find(begin)
        if found >= 0:
            return found
        longest = min(len(self._held), len(begin) - 1)
        overlap = next((n for n in range(longest, 0, -1) if self._held.endswith(begin[:n])), 0)
        return len(self._held) - overlap

    def _text(self, text: str) -> str:
        """Return a text, but for spaces at its end, which wait for more text: before a call they mean nothing."""
        text = self._spaces + text
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        self._has_text = self._has_text or bool(kept)
        return kept

    def _calls(self, text: str) -> list[ToolCall] | None:
        """Return the calls of a text, None where it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        values = value if self._form.is_list and isinstance(value, list) else [value]
        calls = [call for each in values if (call := self._call(each)) is not None]
        if not calls or len(calls) != len(values):
            return None
        room = None if self._most is None else max(0, self._most - self.count)
        return calls[:room]

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or name not in self._names:
            return None
        other = "parameters" if self._form.arguments == "arguments" else "arguments"
        arguments = value.get(self._form.arguments, value.get(other, {}))
        if not isinstance(arguments, dict):
            return None
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
