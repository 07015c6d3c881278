"""The pages tell the truth of today: the list of files, every command and flag, every link, every message."""

import ast
import re
import tomllib

import pytest
import yaml

from jaxlm.common.architecture.presets import PRESETS
from tests.pages import (
    COMMON_FLAGS,
    PAGES,
    ROOT,
    anchors,
    every_flag,
    flags_in_prose,
    flags_of,
    has_flag,
    links,
    make_targets,
    read_command,
    read_page,
    shell_lines,
    without_code,
)

PACKAGES = ("shared_tokenizer", "jaxlm", "mlxlm", "scripts")


def listed_files() -> list[str]:
    """Return the paths of docs/code-map.md."""
    found, folder = [], ""
    for line in read_page("docs/code-map.md").split("## The files")[1].splitlines():
        if heading := re.fullmatch(r"### `(.+/)`", line):
            folder = heading[1]
        elif entry := re.match(r"- `([^`]+)`: \S", line):
            found.append(folder + entry[1])
    return found


def test_the_code_map_lists_every_file():
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml", ".cc", ".h") and path.name != "__init__.py"
    }
    listed = listed_files()
    assert len(listed) == len(set(listed))
    assert set(listed) == there


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page, monkeypatch):
    monkeypatch.setattr("jaxlm.common.tracker_names.is_installed", lambda name: True)  # what pages name, they install
    wrong = {}
    for line in shell_lines(read_page(page)):
        try:
            command = read_command(line)
            if command is not None:
                command.parse()
        except ValueError as error:
            wrong[line] = str(error)
    assert not wrong


def test_the_commands_are_installed_by_their_names():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert scripts == {name: f"{name}.__main__:main" for name in ("jaxlm", "mlxlm")}


def test_there_are_commands_of_every_kind():
    lines = [line for page in PAGES for line in shell_lines(read_page(page))]
    targets = {command.target for line in lines if (command := read_command(line)) is not None}
    assert len(targets) >= 15, sorted(targets)


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_prose_exist(page):
    text = read_page(page)
    for command, flag in flags_in_prose(text):
        known = flags_of(command.target) | COMMON_FLAGS
        assert has_flag(known, flag), f"{command.target} has no --{flag}"
    for flag in re.findall(r"`[^`\n]*?--([a-z][\w.-]*)", without_code(text)):
        assert has_flag(every_flag(), flag), f"no command has --{flag}"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in make_targets(read_page(page)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = read_page(page)
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link
        if page.startswith("docs/"):
            assert target.resolve().is_relative_to(ROOT / "docs"), f"{link} leads out of the site"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_pages_name_exist(page):
    packages = "jaxlm|mlxlm|shared_tokenizer|scripts|tests|examples"
    for name in re.findall(rf"`((?:{packages})/[\w./]+)`", without_code(read_page(page))):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_every_page_is_in_the_site_and_in_its_index():
    # Not loaded as YAML: it names a Python function.
    site = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert site == pages
    assert {link for link in links(read_page("docs/README.md")) if link.endswith(".md")} == pages - {"README.md"}


def test_presets_are_all_named():
    named = set(re.findall(r"`([\w.-]+)`", read_page("docs/training.md")))
    assert set(PRESETS) <= named


def messages() -> list[str]:
    """Return every text of the code, with values as `{}` and neighbouring parts joined."""
    found = []
    for package in PACKAGES[:3]:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    known = messages()
    rows = re.findall(r"^\| `([^`]+)` \|", read_page("docs/troubleshooting.md"), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in row.split("...")), re.DOTALL)
        assert any(pattern.search(message) for message in known), row


def test_every_table_of_benchmarks_has_a_date():
    for section in re.split(r"^##+ ", read_page("docs/benchmarks.md"), flags=re.MULTILINE)[1:]:
        if re.search(r"^\|", section, re.MULTILINE) and "The same run" not in section:
            assert re.search(r"20\d\d-\d\d-\d\d", section), section.splitlines()[0]


def test_yaml_examples_are_named_in_a_page():
    text = "".join(read_page(page) for page in PAGES)
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".sh", ".yaml", ".py"):
            assert f"examples/{path.name}" in text, path.name
            if path.suffix == ".yaml":
                assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)
