"""A study: one question, and the training runs that answer it, as a YAML file names them."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.command_line import parse
from jaxlm.common.help import nearest
from jaxlm.training.train_config import TrainConfig

_FIELDS = ("question", "settings", "variants", "grid", "base", "seeds", "evaluate")
# Settings that a study sets itself, so that its file cannot.
_OWN_SETTINGS = ("output_dir", "resume", "seed", "config")


@dataclass(frozen=True)
class Study:
    """Variants of one training run, each with the same seeds.

    In a text among the settings, `{runs}` stands for the folder of the study's runs and `{seed}` for the seed of the
    run: `{runs}/dense/seed-{seed}` names an earlier run of the study.
    """

    name: str
    question: str
    settings: Mapping[str, Any]
    """Settings of `jaxlm train` that all runs share; dots reach into a group: `optimizer.learning_rate`."""
    variants: Mapping[str, Mapping[str, Any]]
    """Settings of each variant, by its name."""
    base: str
    """Name of the variant that the others are compared with."""
    seeds: tuple[int, ...]
    grid: tuple[str, ...] = ()
    """Settings that the variants are a grid of; () where the variants are a list."""
    evaluate: Mapping[str, Any] | None = None
    """Settings of `jaxlm evaluate` for every finished run, without the model."""

    def runs(self) -> list["StudyRun"]:
        """Return all runs, seed by seed: with each seed that is done, the variants are compared on one seed more."""
        return [StudyRun(self, variant, seed) for seed in self.seeds for variant in self.variants]

    def check(self, runs: Path) -> None:
        """Raise ValueError where `jaxlm train` would refuse the settings of a run, or two variants are the same run."""
        found = dict[str, str]()
        for run in self.runs():
            config = run.config(runs)
            preset = dataclasses.asdict(PRESETS[config.preset]) if config.preset in PRESETS else {}
            meant = repr(dataclasses.replace(config, output_dir="", model=preset | config.model))
            other = found.setdefault(meant, run.variant)
            if other != run.variant:
                raise ValueError(
                    f"variants {other!r} and {run.variant!r}: found the same settings, defaults of the preset and of "
                    "jaxlm train included; expected a difference"
                )


@dataclass(frozen=True)
class StudyRun:
    """One training run of a study."""

    study: Study
    variant: str
    seed: int

    def directory(self, runs: Path) -> Path:
        """Return the run directory, below the folder of the study's runs."""
        return runs / self.variant / f"seed-{self.seed}"

    def settings(self, runs: Path) -> dict[str, Any]:
        """Return the settings of `jaxlm train`, as its `--config` takes them."""
        merged = {**self.study.settings, **self.study.variants[self.variant]}
        filled = {
            name: _filled(value, {"{runs}": str(runs), "{seed}": str(self.seed)}) for name, value in merged.items()
        }
        return _nested(filled | {"output_dir": str(self.directory(runs)), "seed": self.seed})

    def names(self, variant: str) -> bool:
        """Return True if the settings name a run of another variant."""
        settings = {**self.study.settings, **self.study.variants[self.variant]}
        return f"{{runs}}/{variant}/" in json.dumps(settings, ensure_ascii=False)

    def config(self, runs: Path) -> TrainConfig:
        """Return the settings of `jaxlm train`. Raises ValueError, naming the variant, where it would refuse them."""
        try:
            return parse(TrainConfig, ["--config", yaml.safe_dump(self.settings(runs))])
        except ValueError as error:
            raise ValueError(f"variant {self.variant!r}: {error}") from error


def read_study(path: Path) -> Study:
    """Read the file of a study. Raises ValueError, naming the field, where it is no study."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    try:
        return _study(path.stem, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _study(name: str, content: object) -> Study:
    if not isinstance(content, dict):
        raise ValueError("expected a mapping with settings, variants or grid, and seeds")
    for field in content:
        if field not in _FIELDS:
            expected = nearest(str(field), _FIELDS) or f"; expected {', '.join(_FIELDS)}"
            raise ValueError(f"found field {field!r}{expected}")
    question = content.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question: found {question!r}, expected the sentence that the study answers")
    settings = _settings("settings", content.get("settings") or {})
    if ("variants" in content) == ("grid" in content):
        raise ValueError("variants, grid: expected one of the two")
    grid = content.get("grid")
    variants = _variants(content["variants"]) if grid is None else _grid(grid)
    base = content.get("base", next(iter(variants)))
    if base not in variants:
        raise ValueError(f"base: found {base!r}, expected one of the variants {', '.join(map(repr, variants))}")
    seeds = content.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds: found {seeds!r}, expected a list of whole numbers from 0 on")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: found {seeds!r}, expected each seed once")
    evaluate = content.get("evaluate")
    if evaluate is not None:
        evaluate = _settings("evaluate", evaluate, own=("model", "json", "config"))
    return Study(name, question.strip(), settings, variants, base, tuple(seeds), tuple(grid or ()), evaluate)


def _settings(field: str, found: object, own: tuple[str, ...] = _OWN_SETTINGS) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{field}: found {found!r}, expected settings with their values")
    for name in own:
        if name in found:
            raise ValueError(f"{field}: found {name}, which the study sets itself")
    return found


def _variants(found: object) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not found:
        raise ValueError(f"variants: found {found!r}, expected names with the settings of each")
    variants = {}
    for name, settings in found.items():
        # The name is one of a folder.
        if (
            not isinstance(name, str)
            or not name
            or name != name.strip(". ")
            or any(mark in name for mark in '/\\\0{}"')
        ):
            raise ValueError(f"variants: found the name {name!r}, expected a text that may name a folder")
        variants[name] = _settings(f"variants: {name}", {} if settings is None else settings)
    return variants


def _grid(found: object) -> dict[str, dict[str, Any]]:
    """Return a variant for each combination of the values, the last setting changing first."""
    grid = _settings("grid", found)
    for name, values in grid.items():
        if not isinstance(values, list) or not values or any(isinstance(value, list | dict) for value in values):
            raise ValueError(f"grid: {name}: found {values!r}, expected a list of values")
    if not grid:
        raise ValueError("grid: found no settings, expected at least one with a list of values")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    named = {
        ",".join(f"{name.split('.')[-1]}={_word(value)}" for name, value in point.items()): point for point in points
    }
    if len(named) < len(points):
        raise ValueError("grid: two of its points have the same name; give variants instead")
    return _variants(named)


def _word(value: object) -> str:
    """Return a value as a part of the name of a variant."""
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "-")


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """Return a value of the settings with the placeholders in its texts replaced."""
    if isinstance(value, str):
        for word, meaning in words.items():
            value = value.replace(word, meaning)
        return value
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if isinstance(value, dict):
        return {name: _filled(item, words) for name, item in value.items()}
    return value


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted names as groups: `{"a.b": 1, "a": {"c": 2}}` becomes `{"a": {"b": 1, "c": 2}}`."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, last = name.split(".")
        inside = nested
        for group in groups:
            inside = inside.setdefault(group, {})
            if not isinstance(inside, dict):
                raise ValueError(f"{name}: {group} has the value {json.dumps(inside)} already, expected a group")
        if isinstance(value, dict) and isinstance(inside.get(last), dict):
            inside[last] = {**inside[last], **value}
        else:
            inside[last] = value
    return nested
