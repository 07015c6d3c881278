"""Settings -> what they mean for a tokenizer, a device and a data set."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from jaxlm.checkpoints.init_from import initial_config
from jaxlm.common.architecture.config import ModelConfig, config_from_dict, fields_of
from jaxlm.common.architecture.presets import nearest_preset, preset
from jaxlm.common.help import hint_for
from jaxlm.common.run.run_config import steps_of_epochs
from jaxlm.common.step_choices import Remat
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.attention import choose_kernel
from jaxlm.ops.machine.gpu import compute_capability, is_ampere
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.train_step import ALL_TERNARY
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Layers up to which `--remat auto` may run them one after another.
_MOST_UNROLLED = 12


def resolve_steps(config: TrainConfig, examples: int) -> TrainConfig:
    """Return the settings with `num_epochs` turned into `num_train_steps`. `examples` are those of one epoch."""
    if config.num_epochs is None:
        return config
    steps = steps_of_epochs(config.num_epochs, examples, config.sequences_per_step)
    return dataclasses.replace(config, num_epochs=None, num_train_steps=steps)


def resolve_model(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the model to train: the preset, the replaced fields, and the tokenizer's vocabulary.

    With `quantize` the model of `init_from` stands in the place of a preset. Raises ValueError where the model cannot
    hold the vocabulary or the sequence, or has nothing to quantize.
    """
    check_model_fields(config.model)
    if config.quantize is not None:
        fields = _quantized_fields(config)
    else:
        fields = dataclasses.asdict(preset(config.preset))
        shape_given = {"hidden_size", "num_heads"} & set(config.model)
        if shape_given and "head_dim" not in config.model:
            fields["head_dim"] = 0  # derived anew
        fields["vocab_size"] = tokenizer.vocab_size
    fields |= {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    model = config_from_dict(fields | config.model)
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size: found {model.vocab_size}, expected at least the tokenizer's {tokenizer.vocab_size}"
        )
    if config.course != ALL_TERNARY and not model.is_ternary:
        raise ValueError(
            "quantize_from_step, quantize_steps: found a model without ternary weights, expected a ternary preset, or "
            "--quantize ternary with init_from"
        )
    if config.seq_len > model.max_seq_len:
        name = "seq_len" if config.seq_len_schedule is None else "seq_len_schedule"
        raise ValueError(
            f"{name}: found {config.seq_len}, expected at most the model's max_seq_len {model.max_seq_len}; "
            f"set --model.max_seq_len {config.seq_len}"
        )
    return model


def _quantized_fields(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of the float model of `init_from` with ternary linear layers."""
    recorded = {field.name for field in dataclasses.fields(ModelConfig) if field.default is dataclasses.MISSING}
    if recorded <= set(config.model):  # of a run that is resumed: its model is written there, and not read again
        return {}
    assert config.init_from is not None
    source = initial_config(Path(config.init_from))
    if source.linear == "ternary":
        raise ValueError(f"quantize: {config.init_from} has ternary linear layers already; leave quantize out")
    ternary = {"linear": "ternary", "scale_dtype": ModelConfig.scale_dtype}
    return fields_of(source) | ternary | ({"sub_norm": True} if config.insert_sub_norm else {})


def check_model_fields(given: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the nearest field, where `--model.NAME` is given for a field that does not exist."""
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in given:
        if name not in known:
            hint = hint_for(f"model.{name}", [f"model.{field}" for field in known])
            meant = f"did you mean --{hint}?" if hint else f"expected one of {', '.join(known)}"
            raise ValueError(f"--model.{name}: a model has no such field; {meant}")


def model_flags(config: ModelConfig) -> list[str]:
    """Return the flags that `resolve_model` turns into this model, for any tokenizer that its vocabulary has room for.

    The special tokens are the tokenizer's.
    """
    name = nearest_preset(config)
    fields, there = fields_of(config), fields_of(preset(name))
    # `resolve_model` takes these from the preset only where it has to.
    given = {"vocab_size"} | ({"head_dim"} if config.has_attention else set())
    changed = {key for key, value in fields.items() if value != there[key]} - {"bos_id", "eos_id", "pad_id"}
    flags = ["--preset", name]
    for key in (key for key in fields if key in given | changed):
        value = fields[key]
        flags += [f"--model.{key}", value if isinstance(value, str) else json.dumps(value)]
    return flags


def training_model(config: TrainConfig, model: ModelConfig, device: Any) -> LanguageModel:
    """Return the model as it is trained on a device. Raises ValueError where the device cannot do it."""
    dtype = activation_dtype(config.dtype, device)
    kernel = choose_kernel(config.attention, dtype, model.head_dim, device) if model.has_attention else "xla"
    remat, backward = remat_forms(config.remat, model, dtype, device)[0], backward_dtype(config.backward_dtype, dtype)
    return LanguageModel(model, dtype, runs_unrolled(config, remat), remat, kernel, backward)


def describe_model(model: LanguageModel) -> str:
    """Return a line on precision, attention kernel, gradient checkpointing and whether layers are a loop."""
    scaled = " with dynamic loss scale" if model.dtype == jnp.float16 else ""
    attention = f", attention {model.attention}" if model.config.has_attention else ""
    backward = f", gradients' products {model.backward_dtype}" if model.backward_dtype else ""
    unrolled = ", layers unrolled" if model.unroll_layers else ""
    return f"{jnp.dtype(model.dtype).name}{scaled}{backward}{attention}, remat {model.remat}{unrolled}"


def remat_forms(remat: Remat | Literal["auto"], model: ModelConfig, dtype: Any, device: Any) -> tuple[Remat, ...]:
    """Return the forms of gradient checkpointing that a `remat` setting leaves open, the fastest first.

    On a CPU that is `none`, whose layers then run one after another (`runs_unrolled`), for models of few layers: a step
    takes 0.87 to 0.97 of the time of the other forms, 1.01 with sequences of 1,024 tokens (AMD EPYC, 2 cores,
    2026-11-30). To compile takes longer with each layer, 1.6 times as long at eight. On accelerators it was not
    measured. Without int8 inputs, `ternary` is little more than `blocks`. In bfloat16 on a CPU it comes before
    `products`, with 0.94 to 0.99 of the time: products of bytes cost less than to keep what they give.
    """
    if remat != "auto":
        return (remat,)
    on_cpu = device.platform == "cpu"
    forms: tuple[Remat, ...] = ("products", "ternary", "blocks")
    if model.linear != "ternary" or model.activation_bits is None:
        forms = ("products", "blocks")
    elif on_cpu and dtype == jnp.bfloat16:
        forms = ("ternary", "blocks")
    return ("none", *forms) if on_cpu and model.num_layers <= _MOST_UNROLLED else forms


def runs_unrolled(config: TrainConfig, remat: Remat) -> bool:
    """Return whether the layers run one after another in place of a loop: as asked, or with `none` where auto took it.

    The loop copies what a layer saves into arrays of all layers, which costs more than `none` saves.
    """
    return config.unroll_layers or (config.remat == "auto" and remat == "none")


def backward_dtype(name: str, dtype: Any) -> str | None:
    """Return the `backward_dtype` of a model with activations in `dtype`: None where it is theirs.

    Raises ValueError where activations are of 16 bits already and it is not theirs.
    """
    activations = jnp.dtype(dtype).name
    if name in ("auto", activations):
        return None
    if activations != "float32":
        raise ValueError(
            f"backward_dtype: found {name} with activations in {activations}, expected that or auto; it is for float32"
        )
    return name


def activation_dtype(name: str, device: Any) -> Any:
    """Return the jax dtype that a `dtype` setting means on a device."""
    if name != "auto":
        return jnp.dtype(name)
    if device.platform == "cpu":
        return jnp.dtype("float32")
    is_older_nvidia = compute_capability(device) is not None and not is_ampere(device)
    return jnp.dtype("float16" if is_older_nvidia else "bfloat16")
