"""reward.png: the rewards of a run over its steps."""

from collections.abc import Sequence
from typing import Any

from jaxlm.common.run.run_directory import RunDirectory
from shared_tokenizer.manifest import replaced_file


def draw_rewards(run: RunDirectory, lines: Sequence[dict[str, Any]]) -> None:
    """Draw the mean reward of each step and what was measured on held-out prompts. Raises OSError with the file."""
    import matplotlib  # here, as it is slow to import, and a run draws only at its end

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    try:
        names = ["reward/mean", *sorted({name for line in lines for name in line if name.startswith("val/")})]
        for name in names:
            points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
            if points:
                is_step = name == "reward/mean"
                label = "reward of the step" if is_step else f"held-out {name.removeprefix('val/')}"
                axes.plot(
                    *zip(*points, strict=True),
                    marker=None if is_step else "o",
                    alpha=0.4 if is_step else 1,
                    label=label,
                )
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="best")
        with replaced_file(run.reward_plot) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    finally:
        pyplot.close(figure)
