import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import jaxlm.training.auto_size
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count
from jaxlm.common.architecture.presets import preset
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.training.auto_size import Device, StepInputs, _step_bytes, choose_sizes, largest_fitting, suitable_batch
from jaxlm.training.device_memory import GIB
from jaxlm.training.inputs import open_sets
from jaxlm.training.objectives.choose import choose_objective
from jaxlm.training.objectives.next_token import next_token
from jaxlm.training.open_run import open_run
from jaxlm.training.resolve import resolve_model
from jaxlm.training.train_config import TrainConfig
from tests.conftest import prepare_texts

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("data") / "shards"
    return prepare_texts(path, [f"def f{i}(x):\n    return x + {i * 7}\n" * 40 for i in range(40)], tokenizer)


@pytest.fixture
def settings(data, tmp_path):
    return {"output_dir": str(tmp_path / "run"), "data_dir": [str(data)], "seq_len": 32, "num_train_steps": 1000}


def choose(**settings):
    """The chosen config and what was said."""
    config = TrainConfig(**settings)
    said = []
    mesh = make_mesh(config.mesh)
    sets = open_sets(config, mesh)
    return choose_sizes(config, sets, choose_objective(config, sets, 32, 0), mesh, said.append), said


def has_free(monkeypatch, nbytes):
    monkeypatch.setattr(jaxlm.training.auto_size, "free_bytes", lambda device: nbytes)


def needs(monkeypatch, nbytes_of):
    """Let steps need what a function of config and model says, and keep what is asked."""
    asked = []

    def step_bytes(config, model, device):
        asked.append((config.preset, config.batch_size, config.grad_accumulation_steps))
        return nbytes_of(config, model)

    monkeypatch.setattr(jaxlm.training.auto_size, "_step_bytes", step_bytes)
    return asked


def of_micro_batch(config, model):
    return GIB + 100 * 2**20 * config.batch_size // config.grad_accumulation_steps


@pytest.mark.parametrize("budget", [0, 109, 110, 250, 399, 10**6])
def test_the_largest_that_fits_is_found_by_the_line(budget):
    asked = []

    def needed(number):
        asked.append(number)
        return 100 + 10 * number

    expected = max((number for number in range(1, 31) if 100 + 10 * number <= budget), default=0)
    assert largest_fitting(30, needed, budget) == expected
    assert len(asked) <= 3


@pytest.mark.parametrize("needed", [lambda n: max(500, 50 * n), lambda n: 100 * math.sqrt(n), lambda n: n * n])
def test_what_is_found_fits_where_the_need_is_no_line(needed):
    for budget in (500, 777):
        found = largest_fitting(1000, needed, budget)
        assert found >= 1 and needed(found) <= budget


def test_an_unknown_need_is_halved():
    needed = {64: math.inf, 1: 10, 32: math.inf, 16: 100}
    assert largest_fitting(64, lambda number: needed[number], 100) == 16


def test_the_batch_that_suits_a_run_follows_the_law():
    config, seq_len, steps = preset("ternary-5m"), 256, 1000
    tokens = suitable_batch(config, seq_len, steps)
    assert tokens == pytest.approx(0.2920 * (model_flops(config, 1, seq_len) / seq_len * tokens * steps) ** 0.3271)


def test_a_batch_is_split_into_the_largest_micro_batches_that_fit(monkeypatch, settings):
    has_free(monkeypatch, 2 * GIB)  # 9/10 of it are given to the run: 8 sequences and not 9
    asked = needs(monkeypatch, of_micro_batch)
    chosen, [said, of_remat] = choose(**settings, batch_size="auto", model=SHAPE)
    # Saving all activations is not worth a smaller micro-batch.
    assert chosen.remat == "products" and of_remat.startswith("remat auto: products")
    model = resolve_model(chosen, open_sets(chosen, make_mesh(chosen.mesh)).tokenizer)
    wanted = round(suitable_batch(model, 32, 1000) / 32)
    parts, rows = chosen.grad_accumulation_steps, chosen.sequences_per_step // chosen.grad_accumulation_steps
    assert (parts, rows) == (math.ceil(wanted / 8), wanted // parts) and parts > 1
    assert len(asked) == 4
    assert f"batch_size auto: {chosen.batch_size} sequences, {32 * chosen.batch_size:,} tokens a step" in said
    assert f"as {parts} micro-batch(es) of {rows}: " in said and " of 1.80 GiB on each device" in said
    # Where there is room, the batch stays whole.
    has_free(monkeypatch, 100 * GIB)
    whole, _ = choose(**settings, batch_size="auto", model=SHAPE)
    assert whole.grad_accumulation_steps == 1 and whole.sequences_per_step == wanted


def test_what_fits_nowhere_is_refused(monkeypatch, settings):
    has_free(monkeypatch, GIB)
    needs(monkeypatch, of_micro_batch)
    with pytest.raises(ValueError, match=r"memory: found 0.90 GiB .* too little for the smallest step of ternary-tiny"):
        choose(**settings, batch_size="auto")
    with pytest.raises(ValueError, match=r"too little for the smallest step of every preset; set a shorter seq_len"):
        choose(**settings, preset="auto")
    with pytest.raises(ValueError, match=r"smallest step of ternary-tiny; set --remat auto, a shorter seq_len"):
        choose(**settings, batch_size="auto", remat="products")
    has_free(monkeypatch, None)
    with pytest.raises(ValueError, match="found a device that does not say what memory it has; set preset and batch"):
        choose(**settings, preset="auto")


@pytest.mark.parametrize(
    ("steps", "gib", "expected", "why"),
    [
        (10, 1000, "ternary-tiny", "ternary-5m would get"),
        (10**6, 1000, "ternary-25m", "trilm-99m would get"),
        (10**6, 0.5, "ternary-5m", "ternary-25m does not fit the device"),
        (10**9, 10**6, "bitnet-7b", "there is none larger"),
    ],
)
def test_the_largest_preset_that_fits_and_that_the_tokens_suffice_for(monkeypatch, settings, steps, gib, expected, why):
    has_free(monkeypatch, int(gib * GIB))
    sizes = {"ternary-tiny": 0.1, "ternary-5m": 0.2, "ternary-25m": 0.5}
    needs(monkeypatch, lambda config, model: GIB * sizes.get(config.preset, 50))
    chosen, [said] = choose(**settings | {"num_train_steps": steps}, preset="auto", remat="products")
    assert (chosen.preset, chosen.batch_size) == (expected, 16)
    assert said.startswith(f"preset auto: {expected}, ") and why in said


def test_a_preset_that_the_settings_rule_out_is_passed_over(monkeypatch, settings):
    has_free(monkeypatch, 100 * GIB)
    needs(monkeypatch, of_micro_batch)
    assert choose(**settings | {"seq_len": 1024}, preset="auto")[0].preset == "ternary-25m"
    with pytest.raises(ValueError, match="seq_len: found 100000, expected at most the model's max_seq_len 512"):
        choose(**settings | {"seq_len": 100_000}, preset="auto")


def test_a_run_that_is_resumed_keeps_its_sizes(monkeypatch, settings):
    has_free(monkeypatch, 2 * GIB)
    needs(monkeypatch, of_micro_batch)
    auto = settings | {"preset": "auto", "batch_size": "auto"}
    chosen, _ = choose(**auto)
    model = dataclasses.asdict(resolve_model(chosen, open_sets(chosen, make_mesh(chosen.mesh)).tokenizer))
    with open_run(chosen, model) as run:
        recorded = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (recorded["preset"], recorded["batch_size"]) == (chosen.preset, chosen.batch_size)
    has_free(monkeypatch, 100 * GIB)
    again, said = choose(**auto, resume=True)
    assert again == dataclasses.replace(chosen, resume=True) and said == []
    with open_run(again, model):
        pass


def of_form(config, model):
    return GIB * {"none": 4, "products": 3, "ternary": 2, "blocks": 1}[config.remat]


@pytest.mark.parametrize(
    ("gib", "linear", "expected", "reason"),
    [
        (3.5, "ternary", "products", "remat auto: not none, a step needs 4.00 of 3.15 GiB on each device"),
        (2.5, "ternary", "ternary", "remat auto: not products, a step needs 3.00 of 2.25 GiB on each device"),
        (2.5, "dense", "blocks", "remat auto: blocks, the fastest that fits: 1.00 of 2.25 GiB on each device"),
        (1.5, "ternary", "blocks", "remat auto: not ternary, a step needs 2.00 of 1.35 GiB on each device"),
        (0.5, "ternary", "blocks", "remat auto: not blocks, a step needs 1.00 of 0.45 GiB on each device"),
    ],
)
def test_checkpointing_takes_the_fastest_form_that_fits(monkeypatch, settings, gib, linear, expected, reason):
    has_free(monkeypatch, int(gib * GIB))
    monkeypatch.setattr(jaxlm.training.auto_size, "_surely_enough", lambda *_: math.inf)
    needs(monkeypatch, of_form)
    chosen, said = choose(**settings, model=SHAPE | {"linear": linear})
    assert chosen.remat == expected and reason in said


def test_where_memory_is_not_short_nothing_is_compiled(monkeypatch, settings):
    has_free(monkeypatch, GIB)
    asked = needs(monkeypatch, of_form)
    chosen, [said] = choose(**settings, model=SHAPE)
    assert (chosen.remat, asked) == ("none", [])
    assert said.startswith("remat auto: none, the fastest that fits: at most 0.0")
    # A pattern of token mixers has no formula.
    choose(**settings, model=SHAPE | {"token_mixer": ["mlgru", "attention"]})
    assert asked
    has_free(monkeypatch, None)
    assert choose(**settings, model=SHAPE)[1] == [
        "remat auto: none, the fastest that fits: the device does not report its memory"
    ]


def test_what_saves_all_activations_is_sure_to_fit_with_more_room_than_the_formula_says(monkeypatch, settings):
    asked = needs(monkeypatch, of_form)
    monkeypatch.setattr(jaxlm.training.auto_size, "training_memory", lambda *_, **__: SimpleNamespace(total=GIB))
    for gib, compilations in ((7.9, 0), (7.7, 1)):  # half of nine tenths is 3.5 GiB or less
        has_free(monkeypatch, int(gib * GIB))
        assert choose(**settings, model=SHAPE)[0].remat == "none"
        assert len(asked) == compilations


def test_bfloat16_on_a_cpu_keeps_int8_inputs_where_not_all_fits(monkeypatch, settings):
    has_free(monkeypatch, 3 * GIB)
    monkeypatch.setattr(jaxlm.training.auto_size, "_surely_enough", lambda *_: math.inf)
    needs(monkeypatch, of_form)
    assert choose(**settings, model=SHAPE, dtype="bfloat16")[0].remat == "ternary"


def test_a_given_form_of_checkpointing_is_taken(settings):
    chosen, said = choose(**settings, remat="blocks")
    assert (chosen.remat, said) == ("blocks", [])


def set_kernel(monkeypatch, dtype):
    """Let the native products of gradients be in a precision, or not be used."""
    found = None if dtype is None else np.dtype(dtype)
    monkeypatch.setattr(jaxlm.training.auto_size, "native_dtype", lambda: found)


@pytest.mark.parametrize(
    ("kernel", "given", "expected"),
    [
        ("bfloat16", {}, "bfloat16"),
        ("float32", {}, "auto"),
        (None, {}, "auto"),
        ("bfloat16", {"backward_dtype": "float32"}, "float32"),
        ("bfloat16", {"dtype": "bfloat16"}, "auto"),
    ],
)
def test_the_products_of_gradients_are_in_bfloat16_where_a_kernel_is_on(settings, monkeypatch, kernel, given, expected):
    set_kernel(monkeypatch, kernel)
    for remat in ("auto", "blocks"):
        assert choose(**settings, **given, remat=remat, model=SHAPE)[0].backward_dtype == expected


def test_a_resumed_run_keeps_the_precision_of_its_gradients_on_another_processor(settings, monkeypatch):
    set_kernel(monkeypatch, "bfloat16")
    began = choose(**settings, remat="blocks", model=SHAPE)[0]
    with open_run(began, began.model):
        pass
    set_kernel(monkeypatch, None)
    resumed = choose(**settings, remat="blocks", model=SHAPE, resume=True)[0]
    assert resumed.backward_dtype == "bfloat16"
    with open_run(resumed, began.model):
        pass


def test_the_compiler_is_asked(settings):
    config = TrainConfig(**settings, batch_size=2, model=SHAPE | {"num_layers": 1})
    mesh = make_mesh(MeshConfig())
    sets = open_sets(config, mesh)
    model, inputs = resolve_model(config, sets.tokenizer), StepInputs(next_token(), sets.train[0][0], None)
    state = 12 * parameter_count(model) + ternary_parameter_count(model)
    assert state < _step_bytes(config, model, Device(mesh, GIB, inputs)) < 50 * 2**20
    # Where the state does not fit, it is not.
    assert _step_bytes(config, model, Device(mesh, state - 1, inputs)) == math.inf


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": "auto", "grad_accumulation_steps": 2},
            "grad_accumulation_steps: has no effect with batch_size",
        ),
        ({"preset": "auto", "init_from": "there"}, "preset: found auto with init_from"),
        ({"batch_size": 0}, "batch_size: found 0, expected at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings | fields)
