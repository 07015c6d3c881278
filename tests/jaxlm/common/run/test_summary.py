import math

import pytest
from matplotlib import image

from jaxlm.common.run.summary import highest_shown, plot_losses


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([25.0] + [8.3 - 0.05 * step for step in range(60)], 8.3),  # a fresh tied model, above ln V
        ([25.0, 17.0, 12.0] + [7 + math.exp(-step / 20) for step in range(100)], 8.0),
        ([8.3 * math.exp(-step / 100) + 2 for step in range(100)], 10.3),  # nothing stands out
        ([9.0, 8.0], 9.0),
        ([3.0, 3.0, 3.0, 3.0], 3.0),
        ([], 0.0),
    ],
)
def test_first_points_far_above_the_rest_are_not_shown(losses, expected):
    assert highest_shown(losses) == pytest.approx(expected)


def test_the_picture_is_whole_or_not_there(tmp_path):
    lines = [{"step": step, "data/tokens_seen": step, "train/loss": 25.0 if step == 1 else 3.0} for step in range(1, 9)]
    plot_losses([*lines, {"step": 9, "data/tokens_seen": 9, "val/loss": 3.0}], tmp_path / "loss.png")
    assert image.imread(tmp_path / "loss.png").shape[0] > 100
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        plot_losses(lines, tmp_path / "taken")


def test_a_damaged_log_does_not_keep_a_run_from_its_picture(tmp_path):
    lines = [
        {"step": 1, "data/tokens_sedn": 5, "train/loss": 2.0},
        {"step": 2, "data/tokens_seen": 9, "train/loss": "2"},
    ]
    plot_losses([*lines, {"data/tokens_seen": 15, "train/loss": 1.0}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000
