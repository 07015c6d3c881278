"""A dense artifact read as the ternary model that it is: floats that are ternary, or latents that no config names.

Floats that are ternary keep every code and scale. Latents look like any dense weights: their scales and activations
have to be named, or are those of a preset of the same shape.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import Parameter, parameters, scale_name, stored_tensors
from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.architecture.ternary import SMALLEST_SCALE
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.recognition.scales import Recognition, common_scale_dtype, common_scale_per
from jaxlm.common.recognition.ternary_floats import recognize, ternary_form

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
# Fields that tell the models of a shape from others.
_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "token_mixer")
# Weights looked at in one piece, and rows that tell whether a model may be ternary.
_PIECE = 2**22
_SAMPLE_ROWS = 32


@dataclass(frozen=True)
class TernaryReading:
    """The facts that the caller names of a model that is to be read as ternary."""

    scale_per: str | None = None
    """As in ModelConfig; None for what the weights show, or what the preset of the same shape has."""
    activation_bits: Literal["auto", "none", 8] = "auto"
    """auto for those of the preset of the same shape; without one, none for weights that are ternary already."""


def as_ternary(artifact: Artifact, reading: TernaryReading, log: Callable[[str], None] = lambda line: None) -> Artifact:
    """Return a dense artifact as a ternary one: packed where its floats are ternary, latent where they are not.

    `log` receives a line on each assumption. Raises ValueError where the artifact is ternary already, where it is of
    another family, where some linears are ternary and some are not, where its weights do not have the scales that are
    named, and on latents whose scales or activations nobody names.
    """
    if artifact.kind != "latent" or artifact.config.is_ternary:
        raise ValueError("--as ternary: found a model that is ternary already; leave the flag out")
    linears = _linears(artifact.config)
    first = recognize(row_blocks(artifact, linears[0]), _shape(linears[0]))
    if first.reason in ("dense", "not finite"):
        return _latent(artifact, reading, log)
    tables = [parameter for parameter in parameters(artifact.config) if parameter.name in _TABLES]
    rest = {each.name: recognize(row_blocks(artifact, each), _shape(each)) for each in (*linears[1:], *tables)}
    matrices = {linears[0].name: first} | rest
    for parameter in linears:
        if not (found := matrices[parameter.name]).is_ternary:
            raise ValueError(f"{parameter.name}: found weights that are not ternary: {found.reason}")
    config = ternary_config(artifact.config, matrices, reading, log)
    assert config is not None
    return _packed(artifact, config)


def ternary_config(
    config: ModelConfig, matrices: Mapping[str, Recognition], reading: TernaryReading, log: Callable[[str], None]
) -> ModelConfig | None:
    """Return the ternary model of floats, by what each of its matrices is; None where a linear is not ternary.

    `log` receives a line on each assumption. Raises ValueError where the weights do not have the scales that are named.
    """
    if not all(matrices[parameter.name].is_ternary for parameter in _linears(config)):
        return None
    ternary = {name: matrix for name, matrix in matrices.items() if matrix.is_ternary}
    scale_per = reading.scale_per or common_scale_per(ternary.values())
    for name, matrix in ternary.items():
        if scale_per is None or not matrix.fits(scale_per):
            raise ValueError(f"{name}: found ternary weights with scales per {matrix.scale_per}, expected {scale_per}")
    assert scale_per is not None
    if deviation := max(matrix.deviation for matrix in ternary.values()):
        log(
            "its weights were rounded after they were multiplied with scales: magnitudes of one scale differ by up to "
            f"{deviation:.1e}; read with the one between them, so they change by half of that"
        )
    return replace(
        config,
        linear="ternary",
        scale_per=scale_per,
        scale_dtype=common_scale_dtype(ternary.values(), scale_per),
        activation_bits=_activation_bits(config, reading, log),
        embedding="ternary" if _TABLES[0] in ternary else config.embedding,
        ternary_head=_TABLES[1] in ternary,
    )


def _activation_bits(config: ModelConfig, reading: TernaryReading, log: Callable[[str], None]) -> int | None:
    if reading.activation_bits != "auto":
        return _bits(reading.activation_bits)
    preset = preset_of_shape(config)
    bits = PRESETS[preset].activation_bits if preset else None
    log(
        f"its activations are read as {'floats' if bits is None else f'{bits}-bit'}"
        + (f", as in {preset}" if preset else ", since nothing in its files names a quantizer")
        + "; --activation_bits names others"
    )
    return bits


def log_if_ternary(artifact: Artifact, path: object, log: Callable[[str], None]) -> None:
    """Tell where a dense artifact seems to be a ternary model: by the first rows of two matrices, or by its shape."""
    if artifact.kind != "latent" or artifact.config.is_ternary:
        return
    way_out = f"`jaxlm convert {path} DIR --as ternary` writes it as the ternary model that it is"
    linears = _linears(artifact.config)
    samples = [_sample(artifact, parameter) for parameter in (linears[0], linears[-1])]
    if all(sample.is_ternary for sample in samples):
        scales = common_scale_per(samples)
        log(
            f"{path}: its weights are ternary ({scales}, by the first rows), but its config does not say so: read as a "
            f"dense model of floats; {way_out}"
        )
        return
    name = preset_of_shape(artifact.config)
    # Ternary-Bonsai and TriLM, without an activation quantizer, are not released as latents, and dense models of their
    # shapes are: Qwen3 and FloatLM.
    if name is not None and PRESETS[name].activation_bits is not None:
        log(
            f"{path}: it has the shape of {name}, a ternary model, but no quantization_config: read as a dense model; "
            f"if it holds latent weights of that model, {way_out}"
        )


def preset_of_shape(config: ModelConfig) -> str | None:
    """Return the name of the ternary preset with the shape of a model, if there is one."""
    return next(
        (
            name
            for name, preset in PRESETS.items()
            if preset.linear == "ternary" and all(getattr(preset, each) == getattr(config, each) for each in _SHAPE)
        ),
        None,
    )


def row_blocks(artifact: Artifact, parameter: Parameter) -> Iterator[np.ndarray]:
    """Yield a matrix as consecutive blocks of rows, read one at a time where the files allow it."""
    rows, columns = _shape(parameter)
    step = max(1, _PIECE // columns)
    read = getattr(artifact.tensors, "rows", None)
    whole = None if read else artifact.tensors[parameter.name]
    for start in range(0, rows, step):
        yield read(parameter.name, start, start + step) if read else whole[start : start + step]  # pyright: ignore


def _sample(artifact: Artifact, parameter: Parameter) -> Recognition:
    block = next(row_blocks(artifact, parameter))[:_SAMPLE_ROWS]
    return recognize([block], (len(block), block.shape[1]))


def _shape(parameter: Parameter) -> tuple[int, int]:
    rows, columns = parameter.shape
    return rows, columns


def _linears(config: ModelConfig) -> list[Parameter]:
    ternary = replace(config, linear="ternary")
    return [parameter for parameter in parameters(ternary) if parameter.storage == "ternary"]


def _latent(artifact: Artifact, reading: TernaryReading, log: Callable[[str], None]) -> Artifact:
    name = preset_of_shape(artifact.config)
    preset = PRESETS[name] if name else None
    scale_per = reading.scale_per or (preset and preset.scale_per)
    bits = reading.activation_bits
    if scale_per is None or (bits == "auto" and preset is None):
        raise ValueError(
            "--as ternary: found float weights that are no codes times scales, so latent ones, expected to be told "
            "their scales and activations; name --scale_per (tensor for Falcon-E) and --activation_bits (8 or none)"
        )
    changes: dict[str, Any] = {"linear": "ternary", "scale_per": scale_per, "scale_dtype": "float32"}
    changes |= {"embedding": preset.embedding, "ternary_head": preset.ternary_head} if preset else {}
    changes["activation_bits"] = preset.activation_bits if bits == "auto" and preset else _bits(bits)
    config = replace(artifact.config, **changes)
    log(
        f"read as latent weights, ternary per {scale_per}, with "
        + (f"{config.activation_bits}-bit activations" if config.activation_bits else "float activations")
        + (f", as in {name}" if name and (reading.scale_per is None or bits == "auto") else "")
    )
    return replace(artifact, config=config, stored=stored_tensors(config, "latent", artifact.float_dtype))


def _bits(bits: Literal["auto", "none", 8]) -> int | None:
    return 8 if bits == 8 else None


def _packed(artifact: Artifact, config: ModelConfig) -> Artifact:
    matrices = [parameter for parameter in parameters(config) if parameter.storage == "ternary"]
    stored = stored_tensors(config, "packed", artifact.float_dtype)
    tensors = _Packed(artifact, config, matrices)
    return Artifact(config, "packed", artifact.float_dtype, tensors, stored, artifact.tokenizer_metadata)


class _Packed(Mapping[str, np.ndarray]):
    """Codes and scales of matrices that are ternary floats, and the other tensors as they are."""

    def __init__(self, artifact: Artifact, config: ModelConfig, matrices: list[Parameter]):
        self._artifact, self._config = artifact, config
        self._read = ("", np.empty(0, np.float32))
        self._matrices = {parameter.name: parameter for parameter in matrices}
        self._scales = {scale_name(parameter.name): parameter for parameter in matrices}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._matrices:
            codes, self._read = self._form(self._matrices[name])
            return pack(codes)
        if name in self._scales:
            # Those of the matrix that was read last are known.
            last, scales = self._read
            parameter, form = self._scales[name], self._config.ternary_form
            if last != parameter.name:
                scales = self._form(parameter)[1][1]
            rows, columns = parameter.shape
            return scales.reshape(form.stored_shape(rows, columns))
        return self._artifact.tensors[name]

    def _form(self, parameter: Parameter) -> tuple[np.ndarray, tuple[str, np.ndarray]]:
        """Return the codes, and the name of the matrix with its scales."""
        grid = self._config.ternary_form.grid(*_shape(parameter))
        codes, scales = ternary_form(row_blocks(self._artifact, parameter), _shape(parameter), grid)
        # Where all codes are 0 any scale is right.
        return codes, (parameter.name, np.where(scales > 0, scales, np.float32(SMALLEST_SCALE)))

    def __contains__(self, name: object) -> bool:
        return name in self._scales or name in self._artifact.tensors

    def __iter__(self) -> Iterator[str]:
        return (tensor.name for tensor in stored_tensors(self._config, "packed"))

    def __len__(self) -> int:
        return len(stored_tensors(self._config, "packed"))
