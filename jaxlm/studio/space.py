"""A folder that is pushed to the Hugging Face hub as a Space: Dockerfile, card, model, and this project's own files."""

import shutil
import subprocess
from pathlib import Path

import yaml

import jaxlm
from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.common.model_name import shown_name
from jaxlm.common.shelf.card import CARD, as_text
from jaxlm.common.shelf.hub import ATTRIBUTES, attribute_lines
from jaxlm.common.shelf.place import begun_folder, copy_model, move
from jaxlm.studio.processes.jobs import Command
from jaxlm.studio.reading.folders import plain_name

PORT = 7860
# The parts of a checkout that `pip install` needs, but for its README.md: the card takes that name.
_PROJECT = ("pyproject.toml", "LICENSE", "jaxlm", "mlxlm", "shared_tokenizer")
_LONGEST_TITLE = 60


def write_space(model: Path, folder: Path) -> None:
    """Write the folder of a Space that shows a model.

    Raises ValueError where the folder is there already, where the model cannot be read, or where this project was not
    installed from a checkout. Then nothing is left of it.
    """
    if folder.exists():
        raise ValueError(f"{folder}: is there already; remove it, or choose another folder")
    project = Path(jaxlm.__file__).parent.parent
    if missing := [name for name in _PROJECT if not (project / name).exists()]:
        raise ValueError(f"{project}: found no {missing[0]}; run this from a checkout of the project")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with begun_folder(folder.parent) as begun:
        _write_model(model, begun / "model")
        _copy_project(project, begun)
        name = shown_name(model)
        (begun / "Dockerfile").write_text(_dockerfile(plain_name(name, "model")), "utf-8")
        (begun / CARD).write_text(_card(name), "utf-8")
        (begun / ATTRIBUTES).write_text(attribute_lines(), "utf-8")
        if folder.exists():
            raise ValueError(f"{folder}: was made meanwhile; choose another folder")
        move(begun, folder)


def _write_model(model: Path, place: Path) -> None:
    """Copy a packed artifact, or one that has no packed form; convert anything else."""
    try:
        artifact = load_artifact(model)
        is_ready = artifact.kind == "packed" or not artifact.config.has_packed_form
    except (ValueError, OSError):
        is_ready = False
    if is_ready:
        copy_model(model, place)
        return
    done = subprocess.run(Command("convert", (str(model), str(place))).argv, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().rpartition("error: ")[2] or f"{model}: cannot be converted")


def _copy_project(project: Path, folder: Path) -> None:
    for name in _PROJECT:
        if (project / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(project / name, folder / name, ignore=ignored)
        else:
            shutil.copyfile(project / name, folder / name)


def _dockerfile(name: str) -> str:
    """Return the steps that build the Space. A user without rights installs and runs all of it.

    The hub sets SPACE_HOST to the name by which browsers call the Space.
    """
    parts = "\n".join(f"COPY --chown=user {part} ./{part}" for part in (*_PROJECT, CARD))
    return f"""\
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 user
USER user
RUN mkdir /home/user/app && python -m venv /home/user/venv
WORKDIR /home/user/app
ENV PATH=/home/user/venv/bin:$PATH PYTHONUNBUFFERED=1
{parts}
RUN pip install --no-cache-dir '.[demo]'
COPY --chown=user model ./{name}
EXPOSE {PORT}
CMD exec jaxlm demo --model {name} --host 0.0.0.0 --port {PORT} --public --allowed_hosts "${{SPACE_HOST:-localhost}}"
"""


def _card(name: str) -> str:
    """Return the card of the Space: settings that the hub reads, and a text for people."""
    settings = {
        "title": name[:_LONGEST_TITLE],
        "emoji": "💬",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "docker",
        "app_port": PORT,
        "pinned": False,
        "short_description": "Talk to a language model",
    }
    front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{front}---\n\n# {as_text(name)}\n\n"
        "A language model that was trained with jaxlm, to talk to in a browser. The folder `model/` holds it, the "
        "other folders the program that runs it.\n\n"
        "On a machine of your own:\n\n"
        "```sh\npip install '.[demo]'\njaxlm demo --model model\n```\n"
    )
