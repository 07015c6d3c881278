"""Chat templates of tokenizer directories: write one for other programs, recognise the format of one by its text.

No template is ever rendered here, so the template of an imported model cannot run code.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared_tokenizer.chat.formats import CHAT_FORMATS, ChatFormat, Marker, Part
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
    """Return the Jinja template of a format. It writes a begin token only where documents of the tokenizer have one."""
    template = chat_format.template.lstrip("\n")
    return template if tokenizer.start_ids else f"{_NO_BOS}{template}"


def write_chat_template(directory: Path, chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
    """Write chat_template.jinja, which transformers prefers over a template in tokenizer_config.json."""
    (Path(directory) / CHAT_TEMPLATE_FILE).write_text(chat_template(chat_format, tokenizer), "utf-8")


def write_stop_ids(directory: Path, chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
    """Write generation_config.json, which tells other programs the tokens that end an answer."""
    ends = [tokenizer.eos_id, *(i for i in stop_ids(tokenizer, chat_format) if i != tokenizer.eos_id)]
    content = generation_config(tokenizer.bos_id, ends, tokenizer.pad_id)
    (Path(directory) / GENERATION_CONFIG_FILE).write_bytes(content)


def copy_chat_template(source: Path, directory: Path) -> None:
    """Copy the files of `write_chat_template` and `write_stop_ids`, where there is a template."""
    if (Path(source) / CHAT_TEMPLATE_FILE).is_file():
        for name in (CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE):
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, Path(directory) / name)


def read_chat_format(directory: Path) -> ChatFormat | None:
    """Return the chat format of a directory, None where it has no template. Raises ValueError on an unknown one."""
    for path, template in _templates(directory):
        try:
            return chat_format_of(template)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return None


def read_chat_template(directory: Path) -> str | None:
    """Return the chat template of a directory, None where it has none. Raises ValueError where it is no UTF-8 text."""
    return next((template for _, template in _templates(directory)), None)


def _templates(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path and text of every template of a directory, the one that transformers prefers first."""
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
    """Return the format of a template by its text, without rendering it.

    A template of `chat_template` is compared as a whole. Of any other one, all outputs have to equal those of one
    published template, and its conditions may depend on roles and positions only. So a template with another default
    system message, or with an additional space, is refused. The begin token is not compared. Raises ValueError with
    the unexpected outputs and the known formats.
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
    found = ", ".join(_shortened(output) for output in sorted(unexpected)[:5]) or "a template without outputs"
    raise ValueError(
        f"chat template: found {found}, expected one of the known formats: {', '.join(CHAT_FORMATS)}; if the model "
        "was trained on one of these, give its name as the chat format"
    )


def disagreement(template: str, named: ChatFormat) -> str | None:
    """Return a warning where a chat template is known to write another format than the one that is named, else None.

    A template that is not recognised is known to do so where it never writes a marker of the named format.
    """
    way_out = "give that name only if the model was trained on it, or leave it out"
    try:
        own = chat_format_of(template)
    except ValueError as error:
        frames = (named.user, named.assistant)
        marks = [part for frame in frames for part in (*frame.header, *frame.end, *frame.footer) if _is_written(part)]
        missing = next((part.text for part in marks if isinstance(part, Marker) and part.text not in template), None)
        if missing is None:
            return None
        return f"warning: chat_format {named.name}: the model's own chat template never writes {missing!r} ({error})"
    if own is named:
        return None
    return f"warning: chat_format {named.name}: the model's own chat template is that of {own.name}; {way_out}"


def _is_written(part: Part) -> bool:
    """Return True if a template spells a marker in one piece: not where it joins `<|` and the name of the role."""
    return isinstance(part, Marker) and not re.fullmatch(r"<\|(system|user|assistant)\|>", part.text)


def _published_outputs() -> frozenset[str]:
    formats = CHAT_FORMATS.values()
    prompts = frozenset(known.generation_prompt for known in formats)
    return prompts.union(*(outputs for known in formats for outputs in known.published))


def _shortened(output: str) -> str:
    return repr(output if len(output) <= 100 else f"{output[:100]}...")


# A template with any other word (tools, dates, thinking) can write outputs that no format here has.
_KNOWN_WORD = re.compile(
    "if|elif|else|endif|for|in|endfor|set|not|and|or|is|defined|undefined|[Nn]one|[Tt]rue|[Ff]alse|"
    "messages|message|loop_messages|system_message|content|role|system|user|assistant|loop|first|last|index0|"
    "add_generation_prompt|bos_token|eos_token|trim|strip|capitalize|generation|endgeneration"
)
# A `+` at either end of a block changes the whitespace of the output.
_WORD = re.compile(r"[A-Za-z_]\w*|^\+|\+$")
# An unclosed string ends with the text, so that no template makes the search quadratic.
_STRING = re.compile(r"""'(?:\\.|[^'\\])*(?:'|\\?\Z)|"(?:\\.|[^"\\])*(?:"|\\?\Z)""", re.DOTALL)
_OPENING = re.compile(r"\{[{%#]")
_CLOSING = {"{{": "}}", "{%": "%}", "{#": "#}"}


def _read_outputs(template: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the outputs of a template between its conditions, with names in braces, and its unknown words."""
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
    """Return the output of an expression: its strings, and the names between them in braces."""
    written, position = "", 0
    expression = _with_dots(expression)
    for string in _STRING.finditer(expression):
        written += _in_braces(expression[position : string.start()]) + _literal(_unescaped(string[0][1:-1]))
        position = string.end()
    return written + _in_braces(expression[position:])


def _with_dots(expression: str) -> str:
    """Rewrite `message['content']` as `message.content`, which means the same."""
    return re.sub(r"""\[(['"])(\w+)\1\]""", r".\2", expression)


def _literal(text: str) -> str:
    """Escape the braces of a text, which would mark a name."""
    return text.replace("{", "{{")


def _in_braces(names: str) -> str:
    """Rewrite `+ message.content | trim +` as `{message.content|trim}`."""
    terms = ("".join(term.split()).replace(".strip()", "|trim") for term in re.split(r"[+~]", names))
    return "".join(f"{{{term}}}" for term in terms if term)


def _unescaped(string: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda escape: escapes.get(escape[1], escape[1]), string, flags=re.DOTALL)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a template, with an empty bracket, and the contents of `{{`, `{%` and `{#`, with that bracket.

    Texts lack the whitespace that Jinja removes with the options of transformers (trim_blocks, lstrip_blocks): a
    newline after a block, spaces before a block that begins a line, and whitespace next to a `-`.
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
