import dataclasses
from typing import get_args

import jax
import pytest

from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.model_size import Architecture
from jaxlm.common.architecture.parameters import block_matrix_parameter_count, parameter_count, tensor_bytes
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.common.command_line import parse
from jaxlm.model.language_model import init_params
from jaxlm.planning.new_model import new_model
from jaxlm.planning.new_model_config import NewModelConfig
from jaxlm.planning.recommended import flags_of
from jaxlm.training.resolve import resolve_model
from jaxlm.training.train_config import TrainConfig
from tests.commands import run

ARCHITECTURES = get_args(Architecture)


@pytest.fixture(scope="module")
def command():
    """Return the command, to be run in this process."""
    from jaxlm.commands.new_model import main

    return lambda *arguments: main(parse(NewModelConfig, [*map(str, arguments)], None))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", ["2M", "400M", "2.4B", "70B"])
def test_the_flags_make_the_model(size, arch, tokenizer):
    model = new_model(NewModelConfig(params=size, arch=arch))
    argv = ["--output_dir", "run", "--data_dir", "data", *model.flags]
    made = resolve_model(parse(TrainConfig, argv, None), tokenizer)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    assert made == dataclasses.replace(model.config, **ids)


def test_the_report_of_a_model():
    model = new_model(NewModelConfig(params="20M", arch="mmfree", float_dtype="bfloat16", batch_size=2, seq_len=128))
    assert model.parameters == parameter_count(model.config) > model.ternary_parameters
    assert 0 < model.latent_bytes - tensor_bytes(model.config, "latent", "bfloat16") < 20_000
    assert model.packed_bytes is not None
    assert 0 < model.packed_bytes - tensor_bytes(model.config, "packed", "bfloat16") < 20_000
    assert model.tokens == 20 * model.parameters
    assert new_model(NewModelConfig(params="20M", arch="dense")).packed_bytes is None


def test_a_longer_sequence_makes_the_model_longer():
    short, long = (new_model(NewModelConfig(params="20M", seq_len=length)) for length in (None, 8192))
    assert (short.seq_len, short.config.max_seq_len) == (1024, 1024)
    assert (long.seq_len, long.config.max_seq_len) == (8192, 8192)
    assert long.parameters == short.parameters and long.memory.activations == 8 * short.memory.activations
    assert "--model.max_seq_len" in long.flags


@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama-3.2-1b", "qwen2.5-0.5b", "mistral-7b-v0.3", "bitnet-2b-4t"])
def test_a_preset_is_a_model_too(name, tokenizer):
    model = new_model(NewModelConfig(preset=name, batch_size=1))
    assert (model.config, model.seq_len) == (preset(name), 2048)
    assert model.flags[:2] == ["--preset", name]
    made = resolve_model(
        parse(TrainConfig, ["--output_dir", "run", "--data_dir", "data", *model.flags], None), tokenizer
    )
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    assert made == dataclasses.replace(preset(name), **ids)
    small = new_model(NewModelConfig(preset=name, vocab_size=512))
    assert (small.config.vocab_size, small.config.hidden_size) == (512, model.config.hidden_size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "params: not given, expected a size such as 350M, or --preset NAME"),
        ({"params": "5M", "preset": "qwen3-0.6b"}, "params: given with preset, expected a size such as 350M, or"),
        ({"preset": "qwen3-0.6b", "arch": "dense"}, "arch: has no effect with preset"),
        ({"params": "5M", "table": True}, "params: has no effect with table"),
        ({"table": True, "output_dir": "x"}, "output_dir: has no effect with table"),
        ({"params": "5M", "seed": 1}, "seed: has no effect without output_dir"),
        ({"params": "5M", "batch_size": 0}, "batch_size: found 0, expected at least 1"),
        ({"params": "5M", "seq_len": 0}, "seq_len: found 0, expected at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NewModelConfig(**settings)


def test_the_command_writes_weights_that_training_starts_from(command, tmp_path, capsys):
    blank = tmp_path / "blank"
    command("--params", "700K", "--arch", "dense", "--output_dir", blank, "--seed", 5)
    output = capsys.readouterr().out
    artifact = load_artifact(blank)
    model = new_model(NewModelConfig(params="700K", arch="dense"))
    assert artifact.config == model.config and artifact.kind == "latent"
    assert (blank / "model.safetensors").stat().st_size == model.latent_bytes
    for shown in (
        f"{model.parameters:,}",
        f"{model.latent_bytes:,}",
        f"{model.memory.total:,}",
        f"--init_from {blank}",
    ):
        assert shown in output
    expected = jax.eval_shape(lambda: init_params(model.config, jax.random.key(0)))
    found = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), artifact_params(artifact))
    assert found == expected
    before = {path.name: path.read_bytes() for path in blank.iterdir()}
    with pytest.raises(ValueError, match="already exists and is not empty"):
        command("--params", "700K", "--output_dir", blank)
    assert {path.name: path.read_bytes() for path in blank.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--params", "lots"], "params: found 'lots', expected a number of parameters such as 350M"),
        (["--params", "-5"], "params: found '-5', expected a number of parameters"),
        (["--params", "5M", "--arch", "moe"], "arch: found moe, expected one of ternary, mmfree, dense"),
        (["--params", "5M", "--size", "3"], "--size"),
        (["--params", "1M", "--vocab_size", "32000"], "expected at least 8,"),
        (["--preset", "qwen3"], "preset: found 'qwen3'"),
    ],
)
def test_mistakes_are_named(command, flags, message):
    with pytest.raises(ValueError, match=message):
        command(*flags)


def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path):
    # No test machine has 4 TB free.
    done = run("scripts/new_model.py", "--params", "1T", "--output_dir", tmp_path / "deep" / "blank")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "bytes free, expected at least 4," in done.stderr
    assert not list(tmp_path.iterdir())


def test_moments_on_the_host_are_on_the_device_in_the_update_alone():
    here, away = (new_model(NewModelConfig(params="20M", offload=offload)) for offload in (None, "optimizer"))
    assert (away.memory.moments, away.flags) == (0, [*here.flags, "--offload", "optimizer"])
    update = here.memory.gradient + here.memory.codes - here.memory.activations + here.memory.moments
    assert away.memory.workspace == max(here.memory.workspace, update)


def test_muon_saves_a_moment_of_the_matrices_of_blocks():
    adamw, muon = (new_model(NewModelConfig(params="20M", optimizer=name)) for name in ("adamw", "muon"))
    assert adamw.memory.moments - muon.memory.moments == 4 * block_matrix_parameter_count(muon.config)
    assert muon.flags == adamw.flags
    assert [flags_of(model.training)[6:8] for model in (adamw, muon)] == [
        ["--optimizer.name", "adamw"],
        ["--optimizer.name", "muon"],
    ]


@pytest.mark.parametrize(("seq_len", "name"), [(127, "adamw"), (128, "muon")])
def test_the_optimizer_is_that_of_the_studies_and_counts_in_memory(seq_len, name):
    auto, given = (new_model(NewModelConfig(params="5M", seq_len=seq_len, optimizer=each)) for each in ("auto", name))
    assert auto.memory == given.memory
    assert flags_of(auto.training) == flags_of(given.training)


@pytest.mark.parametrize(("size", "has_sub_norms"), [("5M", False), ("90M", False), ("110M", True)])
def test_small_ternary_models_have_no_sub_norms(size, has_sub_norms):
    assert new_model(NewModelConfig(params=size)).config.sub_norm == has_sub_norms
    assert not new_model(NewModelConfig(params=size, arch="dense")).config.sub_norm
