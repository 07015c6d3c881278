import time

import pytest

from jaxlm.studio.reading.shown_text import LONGEST_LINE, shown, shown_line


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # labels show it as letters: nothing to change
        ("\x1b[31merror\x1b[0m: no", "error: no"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\u202egnp.exe", "a<U+202E>gnp.exe"),
        ("a\u2066b\u2069", "a<U+2066>b<U+2069>"),
        ("zero\u200bwidth", "zero<U+200B>width"),
        ("bell\x07", "bell\u2407"),
        ("nul\0", "nul\u2400"),
        ("half \ud800", "half \ufffd"),
        ("50 %\r100 %", "100 %"),
        ("tab\there, Grüße, 漢字, 🙂", "tab\there, Grüße, 漢字, 🙂"),
    ],
)
def test_a_line_is_shown_as_data(written, seen):
    assert shown_line(written) == seen


def test_a_line_of_a_million_characters_is_cut_fast():
    start = time.perf_counter()
    found = shown_line("x" * 1_000_000)
    assert found == "x" * LONGEST_LINE + " ... (1,000,000 characters)"
    assert time.perf_counter() - start < 0.5


def test_lines_stay_lines():
    assert shown("a\nb\u202ec") == "a\nb<U+202E>c"
