import re
from pathlib import Path

from jaxlm.planning.size_table import SIZES, size_table

PAGE = Path(__file__).parents[3] / "docs" / "sizes.md"


def test_the_page_is_the_output_of_the_program_and_sizes_differ():
    page = PAGE.read_text("utf-8")
    assert page == size_table()
    rows = [line for line in page.splitlines() if re.match(r"\| \d", line)]
    assert [row.split("|")[1].strip() for row in rows] == list(SIZES) * 3
    for column in (2, 8):
        found = [row.split("|")[column] for row in rows]
        assert len(set(found)) == 30
