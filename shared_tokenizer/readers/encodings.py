"""The encoding of a text file: by its byte-order mark, by its name, or a guess for the message that refuses it."""

import codecs
import re

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UTF8_MARK = codecs.BOM_UTF8
_LFS = b"version https://git-lfs.github.com/spec/"
_KINDS_OF_FILES = (
    (_LFS, "what git-lfs left in place of the file; get the file with git lfs pull"),
    (b"%PDF-", "a PDF file; extract its text, for example with pdftotext"),
    (b"{\\rtf", "a document of an office program; save it as text"),
    (b"PK\x03\x04", "a zip archive (or a document of an office program); unpack it, or save it as text"),
    (b"\x1f\x8b", "a gzip file inside of another"),
    (b"\xfd7zXZ", "an xz file; unpack it"),
    (b"BZh", "a bzip2 file; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a rar archive; unpack it"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"SQLite format 3", "a database; export its table as CSV"),
    (b"ARROW1", "an Arrow file; save the table as parquet"),
    (b"\xff\xff\xff\xff", "an Arrow file; save the table as parquet"),
    (b"\x89HDF", "an HDF5 file; save it as parquet or CSV"),
    (b"GGUF", "a GGUF model"),
    (b"PAR1", "a parquet file; name it NAME.parquet"),
    (b"\xd0\xcf\x11\xe0", "a document of an office program; save it as text"),
    (b"\x00\x05\x16\x07", "a file that macOS writes next to a copied one"),
)
# No text of a person begins like this, so the rest need not be looked at.
_NEVER_TEXT = (_LFS, b"%PDF-", b"{\\rtf")
_TAR = b"ustar"
_TAR_POSITION = 257
_GUESSED_BYTES = 1 << 16
# Python's name, the name for iconv, and characters that are frequent in such a text.
_MULTIBYTE = (
    ("euc_jp", "EUC-JP", re.compile("[\u3041-\u30f6]")),
    ("cp932", "SHIFT_JIS", re.compile("[\u3041-\u30f6]")),
    ("cp949", "CP949", re.compile("[\uac00-\ud7a3]")),
    ("gb18030", "GB18030", re.compile("[\u7684\u662f\u4e00\u4e0d\u4e86\u5728\u6709\u4eba\u8fd9\u4e2d]")),
    ("big5", "BIG5", re.compile("[\u7684\u662f\u4e00\u4e0d\u4e86\u5728\u6709\u4eba\u9019\u4e2d]")),
)
_ICONV = {"cp1252": "WINDOWS-1252", "cp1251": "WINDOWS-1251", "koi8_r": "KOI8-R", "utf-16-le": "UTF-16LE"}
_ICONV |= {"utf-16-be": "UTF-16BE", **{name: iconv for name, iconv, _ in _MULTIBYTE}}


def marked_encoding(first: bytes) -> str | None:
    """Return the encoding that a byte-order mark names, None without one and for UTF-8. `first` is 4 bytes or more."""
    return next((name for mark, name in _MARKS if first.startswith(mark)), None)


def checked_encoding(name: str) -> str | None:
    """Return Python's name of an encoding, None for UTF-8. Raises ValueError where it is no encoding of text."""
    try:
        found = codecs.lookup(name)
        "a".encode(name)  # refuses codecs from bytes to bytes
    except (LookupError, UnicodeError, ValueError):
        raise ValueError(
            f"encoding: found {name!r}, expected an encoding that Python knows, such as cp1252, utf-16 or shift_jis"
        ) from None
    return None if found.name in ("utf-8", "utf-8-sig") else found.name


def kind_of_no_text(first: bytes) -> str | None:
    """Return the kind of a file that is no text, and the way out; None for a text and for an unknown kind.

    `first` is the first 512 bytes or more. A text may begin with the letters of a kind, but holds no NUL byte.
    """
    if first[_TAR_POSITION:].startswith(_TAR) and b"\0" in first:
        return "a tar archive; unpack it, and give the folder"
    if b"\0" not in first and not first.startswith(_NEVER_TEXT):
        return None
    return next((kind for magic, kind in _KINDS_OF_FILES if first.startswith(magic)), None)


def explain_not_utf8(content: bytes, position: int, where: str = "") -> str:
    """Return the reason why a file or a row is refused: what it looks like, and the ways out.

    `position` is the byte of `content` that is not UTF-8, `where` replaces its number in the message.
    """
    kind = next((kind for magic, kind in _KINDS_OF_FILES if content.startswith(magic)), None)
    if kind is not None:
        return f"not UTF-8 at byte {where or position}: looks like {kind}"
    encoding = guess_encoding(content[max(0, position - 1000) :][:_GUESSED_BYTES])
    if encoding is None:
        return f"not UTF-8 at byte {where or position}: looks like no text"
    return f"not UTF-8 at byte {where or position}: {advice(encoding)}"


def advice(encoding: str) -> str:
    """Return what a file of this encoding looks like, and the two ways to have it read."""
    name = _ICONV[encoding]
    return f"looks like {name}; read it with --encoding {encoding}, or convert it: iconv -f {name} -t UTF-8 OLD > NEW"


def unmarked_utf16(content: bytes) -> str | None:
    """Return the encoding of text in UTF-16 without a mark: every second byte is zero in any European language."""
    head = content[: 1 << 12]
    if len(head) < 4:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 4 < len(head):  # half of one of the two
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def guess_encoding(content: bytes) -> str | None:
    """Return the likely encoding of bytes that are not UTF-8, None where they are no text."""
    if (found := unmarked_utf16(content)) is not None:
        return found
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in content[: 1 << 12])
    if controls * 20 > len(content[: 1 << 12]):
        return None
    high = [len(run) for run in re.findall(rb"[\x80-\xff]+", content)]
    best, most = None, 0.0
    for name, _, frequent in _MULTIBYTE:
        # The cut may divide a character, so its end is not held against it.
        text = content.decode(name, "replace")
        bad = text.count("\ufffd")
        found = len(frequent.findall(text)) / max(sum(high), 1) - bad / max(len(high), 1)
        if bad <= 2 and found > max(most, 0.05):
            best, most = name, found
    if best is not None:
        return best
    # Languages of Latin letters have single high bytes, Cyrillic words consist of them.
    if sum(high) > 3 * len(high):
        small = [len(re.findall(pattern, content)) for pattern in (rb"[\xe0-\xff]", rb"[\xc0-\xdf]")]
        return "cp1251" if small[0] >= small[1] else "koi8_r"
    return "cp1252"
