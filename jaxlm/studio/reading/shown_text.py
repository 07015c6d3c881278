"""Text from files and programs -> text that a page can show: no control codes, no hidden direction, no endless line."""

import re
import unicodedata

# Terminal escapes: CSI (colours), OSC (titles, links), and the short ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
# Characters that change the direction of what stands around them: a name could look like another one.
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Other characters that are not seen: of width 0, tags, private ones; line ends and tabs stay.
_HIDDEN = re.compile("[\u200b-\u200d\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
LONGEST_LINE = 2000


def shown(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text with terminal escapes taken out, invisible characters spelled as `<U+202E>`, and long lines cut."""
    return "\n".join(shown_line(line, longest) for line in text.split("\n"))


def shown_line(line: str, longest: int = LONGEST_LINE) -> str:
    """Return one line of `shown`. A carriage return starts the line anew, as in a terminal."""
    cut = len(line) - longest
    line = _ESCAPES.sub("", line if cut <= 0 else line[: longest + 200])
    line = line.rstrip("\r").rpartition("\r")[2]
    line = _HIDDEN.sub(_spelled, _DIRECTION.sub(_spelled, line))
    line = "".join(map(_visible, line))
    return line if cut <= 0 else f"{line[:longest]} ... ({cut + longest:,} characters)"


def _spelled(found: re.Match[str]) -> str:
    return f"<U+{ord(found[0]):04X}>"


def _visible(character: str) -> str:
    """Return a control character as its picture, half a surrogate pair as U+FFFD, any other as it is."""
    if character == "\t" or (character >= " " and character not in "\x7f" and not _is_odd(character)):
        return character
    if character < " ":
        return chr(0x2400 + ord(character))
    return "\u2421" if character == "\x7f" else "\ufffd"


def _is_odd(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")
