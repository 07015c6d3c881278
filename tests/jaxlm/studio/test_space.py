import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from jaxlm.__main__ import COMMANDS
from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.common.command_line import parse
from jaxlm.studio.demo_command import main
from jaxlm.studio.processes.jobs import Command
from jaxlm.studio.space import write_space
from jaxlm.studio.studio_config import DemoConfig
from tests.pages import ROOT

_MODEL = ROOT / "tests" / "old_files" / "artifact"


@pytest.fixture
def space(tmp_path) -> Path:
    main(DemoConfig(model=str(_MODEL), export=str(tmp_path / "spaces" / "mine")))
    return tmp_path / "spaces" / "mine"


def test_the_model_is_copied_and_whole(space):
    assert load_artifact(space / "model").kind == "packed"
    assert [path.name for path in space.parent.iterdir()] == ["mine"]  # nothing is left beside it


def test_the_card_is_one_that_the_hub_reads(space):
    card = SpaceCard.load(space / "README.md")
    assert (card.data.sdk, card.data.app_port, card.data.title) == ("docker", 7860, "artifact")
    assert len(card.data.short_description) <= 60 and "jaxlm demo --model model" in card.text


def test_a_name_is_text_on_the_card(tmp_path):
    shutil.copytree(_MODEL, tmp_path / "a <b>: *c*")
    write_space(tmp_path / "a <b>: *c*", tmp_path / "space")
    card = SpaceCard.load(tmp_path / "space" / "README.md")
    assert card.data.title == "a <b>: *c*" and "# a &lt;b&gt;: \\*c\\*" in card.text
    assert "--model a-b-c " in (tmp_path / "space" / "Dockerfile").read_text()


def test_the_project_is_inside_with_what_it_needs(space):
    project = tomllib.loads((space / "pyproject.toml").read_text())["project"]
    assert (space / project["readme"]).is_file() and "demo" in project["optional-dependencies"]
    for package in ("jaxlm", "mlxlm", "shared_tokenizer"):
        names = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".cc", ".h")}
        assert names == {path.relative_to(space) for path in (space / package).rglob("*") if path.is_file()}


def test_the_dockerfile_copies_what_is_there_and_runs_a_command_that_is_one(space):
    lines = (space / "Dockerfile").read_text().splitlines()
    copied = [line.split()[2] for line in lines if line.startswith("COPY")]
    assert copied and all((space / name).exists() for name in copied)
    assert lines.index("USER user") < lines.index("RUN pip install --no-cache-dir '.[demo]'")
    words = shlex.split(lines[-1].replace("${SPACE_HOST:-localhost}", "owner-name.hf.space"))
    assert words[:4] == ["CMD", "exec", "jaxlm", "demo"] and "demo" in COMMANDS
    config = parse(DemoConfig, words[4:])
    assert (config.host, config.port, config.public) == ("0.0.0.0", 7860, True)
    assert config.allowed_hosts == ["owner-name.hf.space"]
    assert re.search(rf"^COPY .* model \./{config.model}$", "\n".join(lines), re.MULTILINE)


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already; remove it, or choose another folder"):
        write_space(_MODEL, tmp_path / "space")
    assert [path.name for path in (tmp_path / "space").iterdir()] == ["mine.txt"]


def test_another_form_is_converted_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    failing = "import sys; print('error: model: found nothing', file=sys.stderr); sys.exit(2)"
    copying = f"import shutil, sys; shutil.copytree({str(_MODEL)!r}, sys.argv[2])"
    program = failing
    argv = property(lambda command: [sys.executable, "-c", program, *command.words])
    monkeypatch.setattr(Command, "argv", argv)
    with pytest.raises(ValueError, match=r"^model: found nothing$"):
        write_space(tmp_path / "run", tmp_path / "space")
    assert list(tmp_path.iterdir()) == []
    program = copying
    write_space(tmp_path / "run", tmp_path / "space")
    assert load_artifact(tmp_path / "space" / "model").kind == "packed"
