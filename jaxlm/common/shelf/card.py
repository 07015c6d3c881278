"""The card of a model: the README.md of a repository of the Hugging Face hub, written from the entry."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jaxlm.common.shelf.entry import Entry, Shelved, printable

CARD = "README.md"
# Prompt of the field to try the model in, on the page of the hub.
_PROMPT = "Once upon a time"
# Model types that llama.cpp and transformers have no class for.
_OURS_ALONE = "jaxlm"
# Settings of a recipe that are paths, of which the last part is told.
_PATHS = ("model", "init_from", "teacher")
_NOT_IN_LLAMA_CPP = ("hgrn_bit", _OURS_ALONE)


def card_text(shelved: Shelved, repository: str | None = None) -> str:
    """Return the card of a model on the shelf, or as it is in a repository of the hub."""
    entry, title = shelved.entry, repository or str(shelved.name)
    front = yaml.safe_dump(_front_matter(shelved, title), sort_keys=False, allow_unicode=True, width=120)
    share = entry.ternary_parameters / entry.parameters
    kind = f"{share:.0%} of them ternary (-1, 0, +1)" if entry.ternary_parameters else "none of them ternary"
    lines = [
        f"---\n{front}---",
        f"# {as_text(title)}",
        f"A {as_text(entry.family)} language model of {entry.parameters:,} parameters, {kind}, in the form "
        f"`{entry.form}`: {entry.bytes:,} bytes, a vocabulary of {entry.vocab_size:,} tokens, a context of "
        f"{entry.max_seq_len:,}.",
    ]
    if entry.notes:
        lines.append("\n\n".join(as_text(line) for line in entry.notes.splitlines() if line.strip()))
    lines += ["## How to run it", *_programs(shelved, repository)]
    if entry.evaluation:
        lines += ["## Results", _table(_results(entry))]
    if entry.run:
        lines += ["## Recipe", _table(_recipe(entry))]
    lines += ["## Where it comes from", _table(_origin(entry, is_public=repository is not None))]
    return "\n\n".join(lines) + "\n"


def as_text(text: str) -> str:
    """Return a text as markdown that shows it as it is: no markup, no link, no mark that steers a terminal."""
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", html.escape(printable(text), quote=False))


def _front_matter(shelved: Shelved, title: str) -> dict[str, Any]:
    entry = shelved.entry
    found: dict[str, Any] = {} if entry.licence is None else {"license": entry.licence}
    libraries = {"mlx": "mlx", "gguf": "gguf"}
    found |= {
        "library_name": libraries.get(entry.form, "jaxlm" if entry.family == _OURS_ALONE else "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["jaxlm", *(["ternary", "bitnet"] if entry.ternary_parameters else []), entry.form],
        "widget": [{"text": _PROMPT}],
    }
    if entry.evaluation:
        metrics = [
            {"type": name, "name": words, "value": value} for name, words, value in _results(entry) if name != "step"
        ]
        task = {"type": "text-generation", "name": "Text generation"}
        dataset = {"type": "held-out", "name": "the held-out split of the training data"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        found["model-index"] = [{"name": title, "results": results}]
    return found


def _results(entry: Entry) -> list[tuple[str, str, float]]:
    """Return the name, the words and the value of each number of the evaluation."""
    words = {
        "bits_per_byte": "held-out bits per byte",
        "loss": "held-out loss, nats per token",
        "step": "after step",
    }
    return [(name, text, entry.evaluation[name]) for name, text in words.items() if name in entry.evaluation]


def _programs(shelved: Shelved, repository: str | None) -> Iterator[str]:
    """Yield a block for each of the four programs that run the model in this form, or in one that it is turned into."""
    entry, name = shelved.entry, str(shelved.name)
    if repository is not None:
        name = shelved.name.name
        yield f"```sh\nhf download {repository} --local-dir {name}\n```"
        if entry.form == "gguf":
            name = f"{name}/{shelved.model.name}"
    prompt = f'--prompt "{_PROMPT}"'
    place = name if repository is not None else str(shelved.model)
    yield f"jaxlm, on any machine:\n\n```sh\njaxlm generate --model {name} {prompt}\n```"
    yield f"mlxlm, on a Mac:\n\n```sh\nmlxlm generate --model {name} {prompt}\n```"
    if entry.form == "mlx":
        yield f"mlx-lm:\n\n```sh\npython -m mlx_lm generate --model {place} --trust-remote-code {prompt}\n```"
    if entry.form == "gguf":
        yield f'llama.cpp:\n\n```sh\nllama-cli -m {place} -p "{_PROMPT}"\n```'
    elif entry.family not in _NOT_IN_LLAMA_CPP:
        yield (
            f"llama.cpp, where it has the architecture:\n\n```sh\njaxlm convert {name} model.gguf --to gguf\n"
            f'llama-cli -m model.gguf -p "{_PROMPT}"\n```'
        )
    if entry.form in ("mlx", "gguf"):
        yield f"transformers, after\n\n```sh\njaxlm convert {name} for-transformers --to {_plain(entry)}\n```"
        place = "for-transformers"
    if entry.family != _OURS_ALONE:
        yield (
            "transformers:\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({place!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({place!r})\n"
            f'ids = tokenizer("{_PROMPT}", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))\n```"
        )


def _plain(entry: Entry) -> str:
    return "packed" if entry.ternary_parameters else "latent"


def _recipe(entry: Entry) -> list[tuple[str, str, Any]]:
    run = entry.run
    rows = [("", "run", run.get("name")), ("", "steps", run.get("steps")), ("", "tokens", run.get("tokens"))]
    for name, value in dict(run.get("recipe") or {}).items():
        rows.append(("", name, Path(str(value)).name if name in _PATHS else value))
    return [row for row in rows if row[2] is not None]


def _origin(entry: Entry, *, is_public: bool) -> list[tuple[str, str, Any]]:
    """Return where a model comes from; a path of this machine is nobody else's business."""
    rows: list[tuple[str, str, Any]] = [] if is_public else [("", "source", entry.source)]
    rows += [("", "added", entry.added), ("", "sha256", entry.sha256)]
    fingerprints = dict(entry.run.get("fingerprints") or {})
    return rows + [("", f"sha256 of its {what}", value) for what, value in fingerprints.items()]


def _table(rows: list[tuple[str, str, Any]]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return as_text(str(value))
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"

    return "\n".join(["| | |", "|---|---|", *(f"| {as_text(words)} | {shown(value)} |" for _, words, value in rows)])
