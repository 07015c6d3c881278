"""The chat template of a directory: writing ours for other programs, and recognising the format of one by its text.

No template is ever rendered here, neither ours nor that of an imported model.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared_tokenizer.chat.formats import CHAT_FORMATS, ChatFormat
from shared_tokenizer.chat.messages import stop_ids
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.tokenizer_files import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    generation_config,
    parse_json_object,
)

LARGEST_TEMPLATE = 100_000
_NO_BOS = "{%- set bos_token = '' %}\n"


def chat_template(chat_format: ChatFormat, tokenizer: Tokenizer) -> str:
    """The format's Jinja template for this tokenizer: it writes the begin token only where documents have one."""
    template = chat_format.template.lstrip("\n")
    return template if tokenizer.start_ids else f"{_NO_BOS}{template}"


def write_chat_template(directory: Path, chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
    """Write chat_template.jinja, which transformers prefers to a template in tokenizer_config.json."""
    (Path(directory) / CHAT_TEMPLATE_FILE).write_text(chat_template(chat_format, tokenizer), "utf-8")


def write_stop_ids(directory: Path, chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
    """Write generation_config.json, by which other programs know where an answer ends."""
    ends = [tokenizer.eos_id, *(i for i in stop_ids(tokenizer, chat_format) if i != tokenizer.eos_id)]
    content = generation_config(tokenizer.bos_id, ends, tokenizer.pad_id)
    (Path(directory) / GENERATION_CONFIG_FILE).write_bytes(content)


def copy_chat_template(source: Path, directory: Path) -> None:
    """Copy what `write_chat_template` and `write_stop_ids` wrote, where there is a template."""
    if (Path(source) / CHAT_TEMPLATE_FILE).is_file():
        for name in (CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE):
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, Path(directory) / name)


def read_chat_format(directory: Path) -> ChatFormat | None:
    """The format of a model directory by its template, None where it has none; raises ValueError on an unknown one."""
    for path, template in _templates(directory):
        try:
            return chat_format_of(template)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return None


def read_chat_template(directory: Path) -> str | None:
    """The template of a model directory as it is written there, None where it has none."""
    return next((template for _, template in _templates(directory)), None)


def _templates(directory: Path) -> Iterator[tuple[Path, str]]:
    """The templates of a directory and where they are written, the one that counts first."""
    for name, read in ((CHAT_TEMPLATE_FILE, _read_template), (CONFIG_FILE, _read_config)):
        path = Path(directory) / name
        template = read(path) if path.is_file() else None
        if template is not None:
            yield path, template


def _read_template(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST_TEMPLATE + 1)
    if len(content) > LARGEST_TEMPLATE:
        raise _too_large(path, path.stat().st_size)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}, expected a chat template") from error


def _read_config(path: Path) -> str | None:
    template = parse_json_object(str(path), path.read_bytes()).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else template
    if template is not None and not isinstance(template, str):
        kind = type(template).__name__
        raise ValueError(f"{path}: chat_template: found a {kind}, expected a text or a list with one named 'default'")
    return template


def _too_large(name: object, size: int) -> ValueError:
    return ValueError(f"{name}: found a chat template of {size} bytes, expected at most {LARGEST_TEMPLATE}")


def chat_format_of(template: str) -> ChatFormat:
    """Recognise a template by its text, without rendering it.

    Ours are recognised whole. Of others, everything that they write has to be, piece by piece, what one
    published template of a format writes, and their conditions may only speak of roles and positions; a default
    system message or a space of their own is refused. Whether they write the begin token is not compared.
    Raises ValueError with what was unexpected and the names of the known formats.
    """
    if (size := len(template.encode("utf-8", "replace"))) > LARGEST_TEMPLATE:
        raise _too_large("chat template", size)
    ours = template.removeprefix(_NO_BOS).strip()
    for known in CHAT_FORMATS.values():
        if ours == known.template.strip():
            return known
    outputs, unexpected = _read_outputs(template)
    if not unexpected:
        for known in CHAT_FORMATS.values():
            if outputs - {known.generation_prompt} in known.published:
                return known
        unexpected = outputs - _published_outputs() or outputs
    found = ", ".join(_shortened(output) for output in sorted(unexpected)[:5]) or "one that writes nothing"
    raise ValueError(
        f"chat template: found {found}, expected one of the known formats: {', '.join(CHAT_FORMATS)}; where the model "
        f"was trained on one of these, give its name"
    )


def _published_outputs() -> frozenset[str]:
    formats = CHAT_FORMATS.values()
    prompts = frozenset(known.generation_prompt for known in formats)
    return prompts.union(*(outputs for known in formats for outputs in known.published))


def _shortened(output: str) -> str:
    return repr(output if len(output) <= 100 else f"{output[:100]}...")


# A template that asks about anything else (tools, dates, thinking) can write what no format here has.
_KNOWN_WORD = re.compile(
    "if|elif|else|endif|for|in|endfor|set|not|and|or|is|defined|undefined|[Nn]one|[Tt]rue|[Ff]alse|"
    "messages|message|loop_messages|system_message|content|role|system|user|assistant|loop|first|last|index0|"
    "add_generation_prompt|bos_token|eos_token|trim|strip|generation|endgeneration"
)
# A `+` at either end of a block changes which whitespace is written.
_WORD = re.compile(r"[A-Za-z_]\w*|^\+|\+$")
# A string that is not closed ends with the text, so that no template makes the search quadratic.
_STRING = re.compile(r"""'(?:\\.|[^'\\])*(?:'|\\?\Z)|"(?:\\.|[^"\\])*(?:"|\\?\Z)""", re.DOTALL)
_OPENING = re.compile(r"\{[{%#]")
_CLOSING = {"{{": "}}", "{%": "%}", "{#": "#}"}


def _read_outputs(template: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a template writes between its conditions, names in braces; and the words in it that no format needs."""
    outputs, words, current = set[str](), set[str](), ""
    for bracket, body in [*_pieces(template), ("{%", "")]:
        if not bracket:
            current += _literal(body)
        elif bracket == "{{":
            current += "" if body.startswith("raise_exception(") else _written(body)
        elif bracket == "{%":
            outputs.add(current)
            current = ""
            if body.startswith("set ") and _STRING.search(value := _with_dots(body.partition("=")[2])):
                outputs.add(_written(value))
                body = _STRING.sub("", value)
            words.update(word for word in _WORD.findall(body) if not _KNOWN_WORD.fullmatch(word))
    return frozenset(outputs - {"", "{bos_token}"}), frozenset(words)


def _written(expression: str) -> str:
    """What an expression writes: its strings as they are, and between them the names in braces."""
    written, position = "", 0
    expression = _with_dots(expression)
    for string in _STRING.finditer(expression):
        written += _in_braces(expression[position : string.start()]) + _literal(_unescaped(string[0][1:-1]))
        position = string.end()
    return written + _in_braces(expression[position:])


def _with_dots(expression: str) -> str:
    """`message['content']` as `message.content`, which means the same."""
    return re.sub(r"""\[(['"])(\w+)\1\]""", r".\2", expression)


def _literal(text: str) -> str:
    """Text that is not taken for a name where it has braces."""
    return text.replace("{", "{{")


def _in_braces(names: str) -> str:
    """`+ message.content | trim +` as `{message.content|trim}`."""
    terms = ("".join(term.split()).replace(".strip()", "|trim") for term in re.split(r"[+~]", names))
    return "".join(f"{{{term}}}" for term in terms if term)


def _unescaped(string: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda escape: escapes.get(escape[1], escape[1]), string, flags=re.DOTALL)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """Text pieces, with no bracket, and what stands in `{{`, `{%` and `{#`.

    Text has lost the whitespace that Jinja takes away as transformers sets it up: a newline after a block, spaces
    before a block that begins a line, and what a `-` takes.
    """
    position, line_begins, strip = 0, True, False
    while opening := _OPENING.search(template, position):
        bracket, text = opening[0], template[position : opening.start()]
        end = template.find(_CLOSING[bracket], opening.end())
        if end < 0:
            raise ValueError(f"chat template: found {bracket!r} that is not closed, expected a Jinja template")
        body, is_block = template[opening.end() : end], bracket != "{{"
        if is_block:
            text = _without_indent(text, line_begins)
        text = text.lstrip() if strip else text
        yield "", text.rstrip() if body.startswith("-") else text
        yield bracket, body.removeprefix("-").removesuffix("-").strip()
        strip, position = body.endswith("-"), end + 2
        line_begins = is_block and template.startswith("\n", position)
        position += line_begins
    text = template[position:].removesuffix("\n")
    yield "", text.lstrip() if strip else text


def _without_indent(text: str, line_begins: bool) -> str:
    last_line = text.rfind("\n") + 1
    return text[:last_line] if (last_line or line_begins) and not text[last_line:].strip() else text
