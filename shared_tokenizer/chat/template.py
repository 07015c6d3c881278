"""Chat templates of tokenizer directories: write one for other programs, read one as a chat format."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared_tokenizer.chat.chat_format import ChatFormat, Marker, Part
from shared_tokenizer.chat.framed import FramedFormat
from shared_tokenizer.chat.messages import stop_ids
from shared_tokenizer.chat.recognition import NO_BOS, recognise_output, recognise_text
from shared_tokenizer.chat.template_format import TemplateFormat
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.tokenizer_files import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    generation_config,
    parse_json_object,
)

LARGEST_TEMPLATE = 100_000


def chat_template(chat_format: ChatFormat, tokenizer: Tokenizer) -> str:
    """Return the Jinja template of a format. It writes a begin token only where documents of the tokenizer have one."""
    template = chat_format.template.removeprefix(NO_BOS).lstrip("\n")
    return template if tokenizer.start_ids else f"{NO_BOS}{template}"


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
    """Return the format of a template: a known one, recognised by its text or by what it writes, else the template's.

    Raises ValueError where it is too large, no template, exceeds a limit of the sandbox, or cannot write a question and
    its answer.
    """
    if (size := len(template.encode("utf-8", "replace"))) > LARGEST_TEMPLATE:
        raise _too_large("chat template", size)
    known = recognise_text(template) or recognise_output(template)
    if known is not None:
        return known
    found = TemplateFormat(template)
    found.check()
    return found


def disagreement(template: str, named: FramedFormat) -> str | None:
    """Return a warning where a chat template is known to write another format than the one that is named, else None.

    A template that is not recognised is known to do so where it never writes a marker of the named format.
    """
    about = f"warning: chat_format {named.name}"
    way_out = "give that name only if the model was trained on it, or leave it out"
    try:
        own = chat_format_of(template)
    except ValueError:
        own = None
    if isinstance(own, FramedFormat):
        # Thinking and not thinking are two ways to use one model.
        is_same = own.name == named.name or (own.thinking and named.thinking)
        return None if is_same else f"{about}: the model's own chat template is that of {own.name}; {way_out}"
    frames = (named.user, named.assistant)
    marks = [part for frame in frames for part in (*frame.header, *frame.end, *frame.footer) if _is_written(part)]
    missing = next((part.text for part in marks if isinstance(part, Marker) and part.text not in template), None)
    return None if missing is None else f"{about}: the model's own chat template never writes {missing!r}; {way_out}"


def _is_written(part: Part) -> bool:
    """Return True if a template spells a marker in one piece: not where it joins `<|` and the name of the role."""
    return isinstance(part, Marker) and not re.fullmatch(r"<\|(system|user|assistant)\|>", part.text)
