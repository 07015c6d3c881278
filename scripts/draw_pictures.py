"""Draw the pictures of README.md and docs/: the pipeline, the measured losses, and the graph of the rooms.

`python scripts/draw_pictures.py` writes them all again. The same input gives the same files.
"""

import hashlib
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from shared_tokenizer.picture import colour, drawn_picture

ROOT = Path(__file__).parent.parent
PIPELINE = Path("docs/images/pipeline.svg")
LOSS = Path("docs/images/loss.svg")
MEASURED = Path("docs/measured/loss.json")
README = Path("README.md")
CODE_MAP = Path("docs/code-map.md")

# Files to read in this order, from token shards to the training loop, with the subject of each.
SPINE = (
    ("shared_tokenizer/data/examples.py", "token shards to examples: inputs, targets, loss mask, segments"),
    ("shared_tokenizer/data/batches.py", "examples to shuffled batches, the same on any number of hosts"),
    ("jaxlm/common/architecture/config.py", "the fields that define a model"),
    ("jaxlm/common/architecture/ternary.py", "the quantizers, for numpy, JAX and MLX"),
    ("jaxlm/ops/ternary_linear.py", "int8 forward product, straight-through gradient"),
    ("jaxlm/model/layers.py", "norm, linear, embedding, rotary position, feed-forward"),
    ("jaxlm/model/mixers.py", "attention and MLGRU, each with its cache"),
    ("jaxlm/model/language_model.py", "the decoder: ids to logits, or to the operands of the loss"),
    ("jaxlm/model/loss.py", "the loss of a batch"),
    ("jaxlm/ops/cross_entropy.py", "cross-entropy in chunks, with its gradient written out"),
    ("jaxlm/training/train_step.py", "(state, batch) to (state, metrics): gradients, update, new codes"),
    ("jaxlm/common/run/training_loop.py", "the loop: step, log, evaluate, sample, save; the same for MLX"),
)
# Packages that the small graph shows as one node each; the large one shows all rooms.
FOLDED = ("shared_tokenizer", "jaxlm.common", "jaxlm.training", "jaxlm.studio", "mlxlm.finetune", "scripts")

TEXT, LINE, SEAL = "#24292f", "#57606a", "#1a7f37"
STAGES = (
    ("text", ("files, folders,", "hub datasets"), "#ddf4ff"),
    ("tokenizer", ("trained here", "or brought"), "#ddf4ff"),
    ("shards", ("token ids", "in .npy files"), "#ddf4ff"),
    ("checkpoint", ("weights, optimizer,", "data position"), "#fff8c5"),
    ("artifact", ("ternary codes", "in 2 bits"), "#dafbe1"),
)
PROGRAMS = (
    ("MLX", "a Mac: chat, serve, fine-tune"),
    ("transformers", "loads it unmodified"),
    ("llama.cpp", "as a GGUF file"),
)
LABELS = {"jaxlm": "jaxlm: load, generate, evaluate", "mlxlm": "mlxlm: load, generate, evaluate, merge"}
BOX, GAP, TOP = (116, 74), 44, 86


def pipeline_svg() -> str:
    """Return picture A: the stages from text to the programs that run the model, with the seal on each arrow."""
    step = BOX[0] + GAP
    programs_left, width, height = 20 + len(STAGES) * step, 20 + len(STAGES) * step + 196, 236
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>From text to the programs that run the model; each arrow ends in files with a sha256 manifest</title>",
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (name, lines, color) in enumerate(STAGES):
        left = 20 + number * step
        parts += _box(left, TOP, BOX[0], BOX[1], color, name, lines)
        if number:
            parts += _arrow(left - GAP, TOP + BOX[1] / 2, left, TOP + BOX[1] / 2, seal=True)
    training = 20 + 3 * step - GAP / 2
    parts.append(_text(training, TOP - 14, "train (JAX)", 12, LINE))
    for number, (name, line) in enumerate(PROGRAMS):
        top = 18 + number * 72
        parts += _box(programs_left, top, 176, 56, "#f6f8fa", name, (line,))
        parts += _arrow(programs_left - GAP, TOP + BOX[1] / 2, programs_left, top + 28, seal=True)
    parts += _seal(38, 214)
    legend = "the result carries the sha256 of its files, checked when it is loaded; a GGUF is read back and compared"
    parts.append(_text(52, 218, legend, 12))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _box(
    left: float, top: float, width: float, height: float, color: str, name: str, lines: Sequence[str]
) -> list[str]:
    middle = left + width / 2
    found = [
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="8" fill="{color}" stroke="{LINE}"/>',
        _text(middle, top + 23, name, 14, TEXT, weight="bold", anchor="middle"),
    ]
    for number, line in enumerate(lines):
        found.append(_text(middle, top + 42 + 15 * number, line, 11, LINE, anchor="middle"))
    return found


def _arrow(left: float, top: float, right: float, bottom: float, *, seal: bool) -> list[str]:
    line = (
        f'<line x1="{left:g}" y1="{top:g}" x2="{right:g}" y2="{bottom:g}" stroke="{LINE}" stroke-width="1.5" '
        'marker-end="url(#head)"/>'
    )
    return [line, *(_seal((left + right) / 2 - 4, (top + bottom) / 2) if seal else [])]


def _seal(x: float, y: float) -> list[str]:
    """Return a check mark in a green disc."""
    return [
        f'<circle cx="{x:g}" cy="{y:g}" r="8" fill="{SEAL}"/>',
        f'<path d="M{x - 4:g},{y:g} l3,3.5 l5,-6.5" fill="none" stroke="#ffffff" stroke-width="2"/>',
    ]


def _text(
    x: float, y: float, text: str, size: int, color: str = TEXT, *, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def measured_digest() -> str:
    """Return the sha256 of the measured losses, which their picture carries."""
    return hashlib.sha256((ROOT / MEASURED).read_bytes()).hexdigest()


def draw_losses() -> None:
    """Write picture B: held-out bits per byte of a ternary model and its float twin on the same tokens."""
    measured = json.loads((ROOT / MEASURED).read_text("utf-8"))
    description: dict[str, str | None] = {"Description": f"drawn from {MEASURED}, sha256 {measured_digest()}"}
    with drawn_picture(ROOT / LOSS, (7.2, 3.4), metadata=description) as (axes,):
        for number, run in enumerate(measured["runs"]):
            tokens = [point["tokens"] / 1000 for point in run["held_out"]]
            losses = [point["bits_per_byte"] for point in run["held_out"]]
            label = f"{run['preset']}, {run['learning_rate']:g}: {losses[-1]:.3f}"
            axes.plot(tokens, losses, marker="o", markersize=3, color=colour(number), label=label)
        axes.set_xlabel("thousand training tokens, the same for both")
        axes.set_ylabel("held-out bits per byte")
        axes.legend(title="preset, learning rate: at the end", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)


def read_rooms() -> dict[str, set[str]]:
    """Return the table of rooms in tests/test_import_rule.py: room -> rooms that it may import."""
    names = runpy.run_path(str(ROOT / "tests" / "test_import_rule.py"))
    return {room: names["rooms_used"](room) for room in names["ROOMS"]}


def folded(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph with each package of `FOLDED` as one node."""
    found: dict[str, set[str]] = {}
    for room, used in rooms.items():
        name = _fold(room)
        found.setdefault(name, set()).update({_fold(other) for other in used} - {name})
    return found


def _fold(room: str) -> str:
    return next((package for package in FOLDED if f"{room}.".startswith(f"{package}.")), room)


def direct_arrows(rooms: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Return room -> rooms that it uses, without those that it also reaches through another one."""
    reached: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in reached:
            reached[room] = set(rooms[room]).union(*(reach(other) for other in rooms[room]))
        return reached[room]

    found = {}
    for room, used in rooms.items():
        further = set().union(*(reach(other) for other in used))
        found[room] = sorted(used - further)
    return found


def rooms_mermaid(rooms: Mapping[str, set[str]]) -> str:
    """Return picture C: an arrow from each room to every room that it may import and reaches through no other."""
    lines = ["```mermaid", "flowchart TB"]
    by_used: dict[tuple[str, ...], list[str]] = {}
    for room, used in direct_arrows(rooms).items():
        by_used.setdefault(tuple(used), []).append(f'{_node(room)}["{LABELS.get(room, room)}"]')
    for used, labels in by_used.items():  # a line for all rooms with the same arrows
        names = " & ".join(map(_node, used))
        lines.append("  " + " & ".join(labels) + (f" --> {names}" if names else ""))
    return "\n".join([*lines, "```"])


def _node(room: str) -> str:
    # Not the name itself: mermaid reads dots and words such as "end" as its own.
    return room.replace(".", "_")


def spine_table(*, linked: bool) -> str:
    """Return the files to read in order, with their lines rounded to tens; `linked` from the root of the checkout."""
    rows = ["| file | lines | shows |", "|---|---|---|"]
    total = 0
    for name, shows in SPINE:
        lines = len((ROOT / name).read_text("utf-8").splitlines())
        total += lines
        shown = f"[`{name}`]({name})" if linked else f"`{name}`"
        rows.append(f"| {shown} | {round(lines, -1)} | {shows} |")
    return "\n".join([*rows, "", f"About {round(total, -2):,} lines in all."])


def between_markers(text: str, name: str) -> tuple[int, int]:
    """Return where the part between `<!-- NAME -->` and `<!-- /NAME -->` begins and ends. Raises ValueError without."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"found no lines <!-- {name} --> and <!-- /{name} -->, expected both")
    return found.span(1)


def read_part(path: Path, name: str) -> str:
    """Return the part of a page between its markers."""
    text = (ROOT / path).read_text("utf-8")
    start, end = between_markers(text, name)
    return text[start:end]


def write_part(path: Path, name: str, content: str) -> None:
    """Replace the part of a page between its markers."""
    text = (ROOT / path).read_text("utf-8")
    start, end = between_markers(text, name)
    (ROOT / path).write_text(text[:start] + content + text[end:], "utf-8")


def main() -> None:
    """Write every picture again."""
    rooms = read_rooms()
    (ROOT / PIPELINE).write_text(pipeline_svg(), "utf-8")
    draw_losses()
    write_part(README, "rooms", rooms_mermaid(folded(rooms)))
    write_part(README, "spine", spine_table(linked=True))
    write_part(CODE_MAP, "rooms", rooms_mermaid(rooms))
    write_part(CODE_MAP, "spine", spine_table(linked=False))


if __name__ == "__main__":
    main()
