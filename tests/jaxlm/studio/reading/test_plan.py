from jaxlm.common.architecture.presets import PRESETS
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.reading.plan import Speed, card, preset_names, speed_here
from jaxlm.studio.reading.runs import Runs
from tests.jaxlm.studio.reading.test_runs import make_run


def test_a_card_counts_what_a_preset_costs():
    found = card("ternary-tiny", Speed(1e11, "test"), vocab_size=4096, batch_size=4, seq_len=128, steps=1200)
    assert found.parameters == 2_622_720 and found.tokens == 614_400
    assert 4.5e6 < found.file_bytes < 4.7e6 and 0.59 < found.ternary < 0.61
    assert found.memory_bytes is not None and found.memory_bytes > 6e8
    assert found.seconds is not None and 90 < found.seconds < 110


def test_every_preset_has_a_card():
    assert sorted(preset_names()) == sorted(PRESETS)
    for name in preset_names():
        assert card(name, None, vocab_size=4096, batch_size=1, seq_len=64, steps=1).seconds is None


def test_the_speed_is_that_of_the_newest_run_of_the_preset(tmp_path):
    assert "timed on this machine" in speed_here([], "ternary-tiny").source
    make_run(tmp_path, "other", preset="dense-tiny", batch_size=4, seq_len=128, model={})
    runs = Runs(Folders(tmp_path))
    assert speed_here(runs.all(), "ternary-tiny").source == "as fast as other"
    make_run(tmp_path, "mine", preset="ternary-tiny", batch_size=4, seq_len=128, model={})
    found = speed_here(runs.all(), "ternary-tiny")
    assert found.source == "as fast as mine"
    seconds = card("ternary-tiny", found, vocab_size=4096, batch_size=4, seq_len=128, steps=100).seconds
    assert seconds is not None and abs(seconds - 1.0) < 0.01  # 100 steps of 10 ms
