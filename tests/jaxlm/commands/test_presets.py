from jaxlm.commands.presets import PresetsConfig, main
from jaxlm.common.architecture.presets import PRESETS


def test_every_preset_is_listed_with_its_size(capsys):
    main(PresetsConfig())
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-3]} == set(PRESETS)
    assert all(len(line) <= 80 for line in lines)
    assert " 2.62M " in next(line for line in lines if line.startswith("ternary-tiny "))


def test_one_preset_is_shown_by_its_matrices(capsys):
    main(PresetsConfig(name="ternary-tiny"))
    assert "self_attn.q_proj.weight" in capsys.readouterr().out
