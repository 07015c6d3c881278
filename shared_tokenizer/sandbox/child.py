"""Render chat templates in a process of its own, which `sandbox` starts.

A template is a program from elsewhere. It runs in jinja2's immutable sandbox, in a process that can do no more than
`child_loop` allows, and writes no more than a limit.
"""

import datetime
import encodings.unicode_escape
import html
import json
import pprint
import textwrap
import unicodedata
from collections import OrderedDict
from typing import Any

import jinja2
import jinja2.debug
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared_tokenizer.sandbox.child_loop import answer_within_limits

# Modules that jinja2 and Python import when a template needs them, which is after files are forbidden.
IMPORTED_LATE = (encodings.unicode_escape, html, jinja2.debug, pprint, textwrap, unicodedata)

# A template that asks for the date gets this one, to which the templates of Llama 3.1 and 3.2 fall back without a
# clock: the same conversation has the same ids on every day.
TODAY = datetime.datetime(2024, 7, 26)
KEPT_TEMPLATES = 16
LONGEST_MESSAGE = 300


class TooMuchOutput(Exception):
    """A template has written more than the limit."""


class RaisedByTemplate(jinja2.TemplateError):
    """A template has called raise_exception, to refuse a conversation."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` and `{% endgeneration %}`, which mark answers: what is between them is written as it is."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Any) -> Any:
        """Return the nodes between the two tags."""
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return an environment with what transformers gives to chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": TODAY.strftime}
    environment.globals.pop("lipsum", None)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    names = ("separators", "sort_keys")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **{n: options[n] for n in names if n in options})


def _raise_exception(message: object) -> None:
    raise RaisedByTemplate(str(message))


def render(template: jinja2.Template, chat: dict[str, Any], longest: int) -> dict[str, str]:
    """Return the text of a conversation, or the error that the template raises: as "text" or "error"."""
    pieces, length = [], 0
    try:
        for piece in template.generate(**chat):
            length += len(piece)
            if length > longest:
                raise TooMuchOutput
            pieces.append(piece)
    except RaisedByTemplate as error:
        return {"error": f"it says {str(error)[:LONGEST_MESSAGE]!r}"}
    except (MemoryError, TooMuchOutput):
        raise
    except Exception as error:
        return {"error": f"it fails: {type(error).__name__}: {error}"[:LONGEST_MESSAGE]}
    return {"text": "".join(pieces)}


def answer(
    content: bytes, environment: ImmutableSandboxedEnvironment, templates: OrderedDict[str, jinja2.Template]
) -> dict[str, Any]:
    """Return the reply to a request: one result per conversation, or what is wrong with the template."""
    try:
        request = json.loads(content)
        key = request["key"]
        if key not in templates:
            if "template" not in request:
                return {"unknown": True}
            templates[key] = environment.from_string(request["template"])
        templates.move_to_end(key)
        if len(templates) > KEPT_TEMPLATES:
            templates.popitem(last=False)
        return {"results": [render(templates[key], chat, request["longest"]) for chat in request["chats"]]}
    except jinja2.TemplateSyntaxError as error:
        return {"wrong": f"no Jinja template: line {error.lineno}: {error.message}"[:LONGEST_MESSAGE]}
    except MemoryError:
        return {"limit": "memory"}
    except TooMuchOutput:
        return {"limit": "output"}
    except Exception as error:
        return {"wrong": f"no template that can be compiled: {type(error).__name__}: {error}"[:LONGEST_MESSAGE]}


def main() -> None:
    """Answer requests until standard input ends."""
    environment, templates = make_environment(), OrderedDict[str, jinja2.Template]()
    for text in (r"{{ 'a\n' ~ 1 | tojson ~ strftime_now('%d') }}", "{{ 1 / 0 }}"):  # imports what rendering needs
        request = {"key": text, "template": text, "longest": 1, "chats": [{}]}
        answer(json.dumps(request).encode(), environment, templates)
    answer_within_limits(lambda content: answer(content, environment, templates))


if __name__ == "__main__":
    main()
