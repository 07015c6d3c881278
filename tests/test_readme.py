"""The README tells the truth of today, and stays short."""

import re
import runpy

import pytest

from tests.pages import ROOT, anchors, links, make_targets, read_page

README = read_page("README.md")
DRAW = runpy.run_path(str(ROOT / "scripts" / "draw_pictures.py"))
MOST_LINES = 200


def test_it_is_short():
    assert len(README.splitlines()) <= MOST_LINES


def test_it_has_four_pictures():
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", README, re.MULTILINE)
    assert pictures == [str(DRAW["PIPELINE"]), "docs/images/studio-run.png", str(DRAW["LOSS"])]
    assert README.count("```mermaid") == 1


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = make_targets(README)
    assert {"setup", "train", "test", "lint", "docs"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def result_rows() -> list[str]:
    return README.split("## Results")[1].split("\n\n")[1].splitlines()[2:]


def linked_page(row: str) -> tuple[str, str]:
    """Return the page that a row of results links to, and the anchor there."""
    (link,) = links(row)
    page, _, anchor = link.partition("#")
    return page, anchor


def test_every_measured_number_links_to_its_measurement():
    assert len(result_rows()) == 6
    for row in result_rows():
        page, anchor = linked_page(row)
        assert page in ("docs/benchmarks.md", "docs/quality.md") and anchor in anchors(read_page(page)), row


def numbers(text: str) -> set[str]:
    """Return the numbers of a text that have a dot or a comma in them."""
    return set(re.findall(r"\d[\d,]*\.\d+|\d+,\d{3}", text))


def test_measured_numbers_are_those_of_the_linked_page():
    found = set()
    for row in result_rows():
        shown = numbers(re.sub(r"\d\.\dM", "", row))  # sizes and token counts are rounded
        assert shown <= numbers(read_page(linked_page(row)[0])), row
        found |= shown
    assert len(found) >= 10


def test_the_graph_of_rooms_is_that_of_the_import_rule():
    rooms = DRAW["read_rooms"]()
    small, large = DRAW["rooms_mermaid"](DRAW["folded"](rooms)), DRAW["rooms_mermaid"](rooms)
    again = "draw it again: python scripts/draw_pictures.py"
    assert DRAW["read_part"](DRAW["README"], "rooms") == small, again
    assert DRAW["read_part"](DRAW["CODE_MAP"], "rooms") == large, again


@pytest.mark.parametrize("page", ["README", "CODE_MAP"])
def test_the_spine_is_ten_to_twelve_files_of_about_the_lines_that_it_says(page):
    rows = re.findall(r"^\| \[?`([^`]+)`.*\| (\d+) \|", DRAW["read_part"](DRAW[page], "spine"), re.MULTILINE)
    assert [name for name, _ in rows] == [name for name, _ in DRAW["SPINE"]]
    assert 10 <= len(rows) <= 12
    lines = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name, _ in rows}
    assert sum(lines.values()) <= 2500
    for name, shown in rows:
        assert abs(int(shown) - lines[name]) <= max(20, 0.25 * lines[name]), f"{name} has {lines[name]} lines"


def test_pictures_are_drawn_from_what_they_show():
    assert (ROOT / DRAW["PIPELINE"]).read_text("utf-8") == DRAW["pipeline_svg"]()
    losses = (ROOT / DRAW["LOSS"]).read_text("utf-8")
    assert DRAW["measured_digest"]() in losses, "draw it again: python scripts/draw_pictures.py"
    for path in (DRAW["PIPELINE"], DRAW["LOSS"]):
        assert (ROOT / path).stat().st_size < 200_000


def test_the_caption_of_the_losses_is_what_was_measured():
    caption = r"ternary-tiny and dense-tiny over ([\d,]+) training tokens: ([\d.]+) and ([\d.]+) at the end"
    ends = re.search(caption, README)
    assert ends is not None
    measured = DRAW["json"].loads((ROOT / DRAW["MEASURED"]).read_text("utf-8"))
    last = [run["held_out"][-1] for run in measured["runs"]]
    assert [run["preset"] for run in measured["runs"]] == ["ternary-tiny", "dense-tiny"]
    assert [f"{point['bits_per_byte']:.3f}" for point in last] == [ends[2], ends[3]]
    assert {point["tokens"] for point in last} == {int(ends[1].replace(",", ""))}
    assert measured["machine"] and measured["date"] and measured["commands"]
