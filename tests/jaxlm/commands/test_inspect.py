import sys

import pytest

from jaxlm.commands.inspect import InspectConfig, main
from tests.jaxlm.common.formats.test_as_ternary import unpacked
from tests.jaxlm.common.formats.test_mlx_quantized import GROUPED, packed_tensors


def test_a_directory_is_shown_by_kinds_of_matrices_forms_and_memory(tmp_path, capsys):
    directory = unpacked(tmp_path / "floats", GROUPED, packed_tensors(GROUPED))
    main(InspectConfig(source=str(directory)))
    output = capsys.readouterr().out
    assert "2 x  *.self_attn.q_proj.weight  128 x 128  ternary  group:64    float16" in output
    assert "scales per group:64 in float16, float activations; its config does not say so" in output
    assert "for stock mlx-lm as it is" in output and "LoRA about" in output
    assert f"jaxlm convert {directory} DIR --as ternary" in output
    main(InspectConfig(source=str(directory), verbose=True))
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().out


def test_a_model_of_the_hub_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"nobody/nothing: no such directory, .* install jaxlm\[hub\]"):
        main(InspectConfig(source="nobody/nothing"))


def test_a_model_of_the_hub_is_downloaded_to_its_cache(tmp_path, monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    directory = unpacked(tmp_path / "floats", GROUPED, packed_tensors(GROUPED))
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    main(InspectConfig(source="owner/name"))
    assert asked == [("owner/name", ["*.json", "*.safetensors"])]
    assert "a ternary model" in capsys.readouterr().out
