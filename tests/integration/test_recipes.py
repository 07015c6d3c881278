"""Every recipe of docs/recipes.md runs as it is written, section by section, in few and small steps."""

import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from tests.integration.reader import BROUGHT, bring_things
from tests.pages import Command, read_command, read_page, shell_lines

PAGE = read_page("docs/recipes.md")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
# The section that others build on, and what they name of it.
FIRST, OF_FIRST = "A model of your own text", re.compile(r"\b(?:data|runs|models)/mine\b(?!-)")

# Of torch, where it is installed: `convert` then asks transformers for its logits.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

# The beginning of a line that is not run -> why.
LEFT_OUT = {
    "make train": "it builds an environment; test_examples.py runs its commands",
    "examples/first_model.sh": "test_examples.py runs it",
    ".venv/bin/jaxlm prepare --hub": "it needs the network",
    ".venv/bin/jaxlm train --config examples/pretrain_700m.yaml": "it needs a GPU; test_examples.py runs the file",
    ".venv/bin/mlxlm finetune --objective dpo": "MLX on a CPU takes minutes for the reference of 200 pairs",
    ".venv/bin/python scripts/compile_for.py": "it needs the compiler for TPUs, which is an extra",
}
# Flags that make a command small. None of them changes what it reads or writes, or what a later command relies on:
# a stored teacher knows its seq_len, a reward its max_tokens.
_STEPS = "--num_train_steps 2 --optimizer.warmup_steps 1"
_TRAIN = f"{_STEPS} --batch_size 2 --eval_batches 1 --sample_tokens 0"
SMALL = {
    "jaxlm.commands.prepare:main": "--num_workers 1",
    "jaxlm.commands.train:main": _TRAIN,
    "mlxlm.finetune.command:main": f"{_TRAIN} --seq_len 96",
    "jaxlm.rl.command:main": f"{_STEPS} --prompts_per_step 2 --samples_per_prompt 2 --num_held_out 4 --eval_samples 1",
    "jaxlm.commands.generate:main": "--max_tokens 2",
    "mlxlm.chat.command:main": "--max_tokens 2",
    "jaxlm.commands.same_text:main": "--max_tokens 2",
    "benchmarks.samples:benchmark": "--num_held_out 4 --most_samples 2",
    "benchmarks.quality:benchmark": f"{_STEPS} --eval_batches 1 --probe_rows 2",
}


def lines_of(section: str) -> Iterator[str]:
    """Yield the lines of a section that are to be run; write the files between them."""
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
        match language:
            case "sh":
                lines = shell_lines(f"```sh\n{text}```")
                yield from (line for line in lines if not line.startswith(tuple(LEFT_OUT)))
            case "bash":
                subprocess.run(["bash", "-euc", text], check=True)
            case "python":
                name = re.search(r"# in (\S+\.py)$", text, re.MULTILINE)
                assert name is not None, f"which file is it? {text}"
                Path(name[1]).write_text(text, "utf-8")
            case _:
                raise AssertionError(f"{language}: a kind of block that nothing here runs")


def run_section(section: str) -> None:
    """Run a section in the working directory, and check the commands that it prints to go on with."""
    for line in lines_of(section):
        try:
            check_printed(run_line(line))
        except (Exception, SystemExit) as error:
            raise AssertionError(line) from error


def run_line(line: str) -> str:
    """Run a line in this process, or in one of its own if it is of another program, and return what it prints."""
    command = read_command(line)
    if command is None:
        python, *words = shlex.split(line)
        assert python == ".venv/bin/python", line
        return subprocess.check_output([sys.executable, *words, "--max-tokens", "2"], text=True)
    small = shlex.split(SMALL.get(command.target, ""))
    printed = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [".venv/bin/jaxlm"])  # printed commands begin with it
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
        patch.setattr("sys.stdout", io.TextIOWrapper(printed, "utf-8", write_through=True))
        Command(command.target, (*command.words, *small), command.positional).run()
        return printed.getvalue().decode()


def check_printed(text: str) -> None:
    """Parse the commands that a command printed, and find the models and data that they name."""
    for line in re.findall(r"^(?:[a-zA-Z ]+:)?\s+((?:\.venv/bin/)?(?:jaxlm|mlxlm) [a-z].*)$", text, re.MULTILINE):
        command = read_command(line)
        assert command is not None
        command.parse()
        for flag, value in itertools.pairwise(command.words):
            if flag in ("--model", "--adapter_path", "--data_dir") and value != "...":
                assert Path(value).exists(), line


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """On a CPU, MLX and torch compile with g++: seconds a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        mx.disable_compile()
        yield
        mx.enable_compile()


@pytest.fixture(scope="module")
def brought(tmp_path_factory) -> Path:
    """A folder with what a reader brings."""
    place = tmp_path_factory.mktemp("brought")
    bring_things(place)
    return place


@pytest.fixture(scope="module")
def after_first(brought) -> Path:
    """The folder after the section that others build on."""
    place = brought.with_name("after-first")
    shutil.copytree(brought, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_section(SECTIONS[FIRST])
    return place


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_runs(heading, brought, request, tmp_path, monkeypatch):
    section, place = SECTIONS[heading], tmp_path / "place"
    start = request.getfixturevalue("after_first") if OF_FIRST.search(section) else brought
    shutil.copytree(start, place)
    monkeypatch.chdir(place)
    if heading != FIRST:
        run_section(section)
    missing = [name for name in places_written(section) if not Path(name).exists()]
    assert not missing


def places_written(text: str) -> list[str]:
    """Return the files and folders that the commands of a text write, outside of the lines that are left out."""
    found = re.findall(r"^done > (\S+)$", text, re.MULTILINE)
    for line in shell_lines(text):
        words = shlex.split(line, comments=True)
        if line.startswith(tuple(LEFT_OUT)):
            continue
        if "convert" in words:
            found.append(words[words.index("convert") + 2])
        found += [value for flag, value in itertools.pairwise(words) if flag in ("--output_dir", "--output")]
    return found


def test_no_command_writes_over_what_another_wrote_or_the_reader_brought():
    written = [*BROUGHT, *places_written(PAGE)]
    assert len(written) > 30
    assert sorted(set(written)) == sorted(written)


def test_what_is_left_out_or_brought_is_in_the_page():
    lines = shell_lines(PAGE)
    for words in LEFT_OUT:
        assert any(line.startswith(words) for line in lines), words
    for name in BROUGHT:
        assert f" {name}" in "\n".join(lines), name
