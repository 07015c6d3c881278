import json

import pytest
from matplotlib import image

from jaxlm.common.command_line import parse
from jaxlm.common.plots.command import PlotConfig, main


@pytest.fixture
def runs(tmp_path):
    for number, name in enumerate(("one", "$two <script>")):
        (tmp_path / name).mkdir()
        lines = [
            {
                "step": step,
                "data/tokens_seen": step * 10,
                "train/loss": 9 / step + number,
                "val/loss": 8 / step,
                "ternary/zero_fraction": 0.3,
                "ternary/flip_rate": 0.1 / step,
                "ternary/flip_rate_by_layer": [0.2 / step, None],
            }
            for step in range(1, 20)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_runs_give_the_same_picture(runs, ending, capsys):
    words = [str(runs / "one"), str(runs / "$two <script>"), "--out"]
    first, second = runs / f"first.{ending}", runs / f"second.{ending}"
    for path in (first, second):
        main(parse(PlotConfig, [*words, str(path)]))
    assert first.read_bytes() == second.read_bytes() and "2 run(s) in" in capsys.readouterr().out
    if ending == "png":
        assert image.imread(first).shape[1] > 600
    else:
        assert "one: 0.421" in first.read_text() and "<script>" not in first.read_text()


def test_one_run_alone_has_a_heat_map_by_layer(runs):
    for name in ("one", "$two <script>"):
        main(PlotConfig(run=[str(runs / name)], out=str(runs / f"{name}.svg")))
    main(PlotConfig(run=[str(runs / "one"), str(runs / "$two <script>")], out=str(runs / "both.svg")))
    assert "layer: flips in a step" in (runs / "one.svg").read_text()
    assert "layer: zeros" not in (runs / "one.svg").read_text()  # which no line has by layer
    assert "layer:" not in (runs / "both.svg").read_text()


def test_what_cannot_be_drawn_is_named_and_nothing_is_written(runs):
    with pytest.raises(ValueError, match=r"empty: found no line of metrics.jsonl"):
        main(PlotConfig(run=[str(runs / "empty")], out=str(runs / "x.png")))
    with pytest.raises(ValueError, match=r"found a picture of type .jpg, expected .png or .svg"):
        main(PlotConfig(run=[str(runs / "one")], out=str(runs / "x.jpg")))
    assert not list(runs.glob("*.png")) and not list(runs.glob("*.jpg"))
