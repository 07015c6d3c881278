"""A model directory that stock mlx-lm serves.

A dense Llama, Qwen2 or Qwen3 needs nothing special: mlx-lm reads the config keys and tensor names of an artifact. Nor
does a ternary model that mlx-lm computes from its own 2-bit format (`mlx_stock`). Any other model comes with a model
file: Python code in the directory that builds the model. config.json names the file. mlx-lm runs it only with
`--trust-remote-code`; this project never runs it. The tensors of such a directory are the parameters of mlxlm's
modules: ternary weights in MLX's 2-bit affine format, or latent weights that the model file ternarises as training
does. Dequantized ternary weights are not offered: without quantized activations they are another model.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import (
    ARCHITECTURES,
    HF_KEYS,
    from_own_config,
    own_object,
    to_hf_config,
)
from jaxlm.common.architecture.packing import affine_words, pack, pack_affine, unpack, unpack_affine
from jaxlm.common.architecture.parameters import Kind, Parameter, StoredTensor, parameters, stored_form, stored_tensors
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.artifact.model_files import (
    CONFIG,
    check_layers,
    check_tensors,
    named_faults,
    open_tensors,
    read_config,
    write_model_files,
)
from jaxlm.common.formats.mlx_quantized import is_quantized_mlx, open_quantized_mlx
from jaxlm.common.formats.mlx_stock import has_stock_form, is_known_to_mlx_lm, stock_config_json, stock_tensors

Form = Literal["packed", "float"]
MODEL_FILE = "model.py"


@dataclass(frozen=True)
class MlxTensor:
    """A tensor of an MLX directory, and the tensor of an artifact with the same numbers."""

    stored: StoredTensor
    """Name, shape and dtype in the MLX directory."""
    name: str
    """Name in the artifact."""
    encode: Callable[[np.ndarray], np.ndarray] = np.asarray
    """Function from the artifact's array to that of the MLX directory."""
    decode: Callable[[np.ndarray], np.ndarray] = np.asarray
    """Function from the MLX directory's array to that of the artifact."""


def needs_model_file(config: ModelConfig) -> bool:
    """Return True if mlx-lm has no model that computes this one, dense or in its own format of 2 bits."""
    return not has_stock_form(config) and (config.linear != "dense" or not is_known_to_mlx_lm(config))


def write_mlx(
    directory: Path,
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    *,
    form: Form,
    float_dtype: str = "float32",
    tokenizer_dir: Path | None = None,
    model_file: str | None = None,
) -> None:
    """Write the files of an MLX directory into an existing directory that the caller seals.

    `read(name)` returns a tensor of the packed artifact (form `packed`) or of the latent one (form `float`); it is
    called in file order, once per tensor. `model_file` is the text of the model file, or None where `needs_model_file`
    is False. mlx-lm computes in `float_dtype`. Raises ValueError where form, model file or a tensor does not fit the
    config.
    """
    if form == "packed" and not config.has_packed_form:
        raise ValueError("form: found 'packed' for a dense model, which has nothing to pack; write it as 'float'")
    if needs_model_file(config) != (model_file is not None):
        raise ValueError(
            "model_file: found none, expected the text of one, which mlx-lm needs for this model"
            if model_file is None
            else "model_file: found one, expected none; mlx-lm builds this model itself"
        )
    if form == "float" and has_stock_form(config):
        raise ValueError("form: found 'float' for a ternary model that mlx-lm has no model for; write it as 'packed'")
    kind: Kind = "packed" if form == "packed" else "latent"
    read_once = functools.lru_cache(maxsize=1)(read)  # two tensors are made of the same scales
    if model_file is not None:
        (directory / MODEL_FILE).write_text(model_file, "utf-8")
    tensors = {tensor.stored.name: tensor for tensor in mlx_tensors(config, kind, float_dtype)}
    write_model_files(
        directory,
        _config_json(config, kind, float_dtype),
        [tensor.stored for tensor in tensors.values()],
        lambda name: tensors[name].encode(read_once(tensors[name].name)),
        tokenizer_dir=tokenizer_dir,
    )


def open_mlx(directory: Path) -> Artifact:
    """Open an MLX directory that `write_mlx` wrote, or that a tool of mlx-lm saved after it loaded such a directory.

    One in the format of stock mlx-lm is opened by `open_quantized_mlx`. The model file is not run. Raises ValueError
    naming a key or a tensor that is not as expected.
    """
    directory = Path(directory)
    if is_quantized_mlx(read_config(directory)):
        return open_quantized_mlx(directory)
    with named_faults(directory / CONFIG):
        config, kind, float_dtype = from_own_config(_read_config(directory), _config_json)
    files = open_tensors(directory)
    found = files.stored()
    check_layers(directory, found, config)
    float_dtype = _found_dtype(found, "norm.weight" if needs_model_file(config) else "model.norm.weight", float_dtype)
    tensors = mlx_tensors(config, kind, float_dtype)
    stored = tuple(tensor.stored for tensor in tensors)
    check_tensors(directory, found, stored)
    return Artifact(config, kind, float_dtype, _Decoded(directory, tensors, files), stored)


class _Decoded(Mapping[str, np.ndarray]):
    """The tensors of an artifact, read from an MLX directory and decoded on use."""

    def __init__(self, directory: Path, tensors: Sequence[MlxTensor], found: Mapping[str, np.ndarray]):
        self._directory = directory
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._found = found

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            return tensor.decode(self._found[tensor.stored.name])
        except ValueError as error:
            raise ValueError(f"{self._directory}: {tensor.stored.name}: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # without decoding it

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def mlx_tensors(config: ModelConfig, kind: Kind, float_dtype: str) -> tuple[MlxTensor, ...]:
    """Return the tensors of an MLX directory, in file order."""
    if has_stock_form(config):
        return tuple(MlxTensor(stored, name, encode) for stored, name, encode in stock_tensors(config, float_dtype))
    if needs_model_file(config):
        return module_tensors(config, kind, float_dtype)
    return tuple(MlxTensor(tensor, tensor.name) for tensor in stored_tensors(config, kind, float_dtype))


def module_tensors(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> tuple[MlxTensor, ...]:
    """Return the parameters of mlxlm's modules under their dotted paths, for an artifact of this kind."""
    return tuple(
        tensor for parameter in parameters(config) for tensor in _module_form(parameter, config, kind, float_dtype)
    )


def _module_form(parameter: Parameter, config: ModelConfig, kind: Kind, float_dtype: str) -> Sequence[MlxTensor]:
    path = parameter.attribute.removesuffix(".weight")
    ours = stored_form(parameter, config, kind, float_dtype)
    if len(ours) == 1:
        return [MlxTensor(StoredTensor(parameter.attribute, parameter.shape, float_dtype), parameter.name)]
    codes, scale = (tensor.name for tensor in ours)
    (rows, columns), form = parameter.shape, config.ternary_form
    is_table = parameter.path[0] == "embed_tokens"
    if parameter.storage == "ternary" and (form.is_by_group or not is_table):
        return [
            MlxTensor(
                StoredTensor(f"{path}.weight", (rows, affine_words(columns)), "uint32"),
                codes,
                lambda packed: pack_affine(unpack(packed, rows)),
                lambda words: pack(unpack_affine(words, columns)),
            ),
            MlxTensor(StoredTensor(f"{path}.weight_scale", form.stored_shape(rows, columns), "float32"), scale),
        ]
    table = StoredTensor(f"{path}.codes", parameter.shape, "int8")
    if parameter.storage == "int8":
        return [MlxTensor(table, codes), MlxTensor(StoredTensor(f"{path}.scale", (rows, 1), "float32"), scale)]
    return [
        MlxTensor(table, codes, lambda packed: unpack(packed, rows), pack),
        MlxTensor(
            StoredTensor(f"{path}.scale", form.grid(rows, columns), "float32"),
            scale,
            lambda scale: scale.reshape(form.grid(rows, columns)),
            lambda scale: scale.reshape(form.stored_shape(rows, columns)),
        ),
    ]


def _config_json(config: ModelConfig, kind: Kind, float_dtype: str) -> dict[str, Any]:
    if has_stock_form(config):
        return stock_config_json(config, float_dtype)
    if not needs_model_file(config):
        return to_hf_config(config, kind, float_dtype)
    # A program that ignores the model file must not take this for a model that it knows.
    content = {"architectures": [ARCHITECTURES["jaxlm"]], "model_type": "jaxlm", "model_file": MODEL_FILE}
    content |= {key: getattr(config, field) for field, key in HF_KEYS.items()}
    return content | {"dtype": float_dtype, "jaxlm": own_object(config, kind)}


def _read_config(directory: Path) -> dict[str, Any]:
    content = read_config(directory)
    if "quantization" in content:
        raise ValueError(
            f"{directory}: quantization: found {content['quantization']!r}, expected none; undo the quantization "
            "of mlx-lm with `mlx_lm.convert --dequantize`"
        )
    # mlx-lm saves the list of generation_config.json here. Its first id is the one of the config.
    if isinstance(ids := content.get("eos_token_id"), list) and ids:
        content["eos_token_id"] = ids[0]
    return content


def _found_dtype(found: Mapping[str, StoredTensor], name: str, default: str) -> str:
    """Return the dtype of the floats on disk. mlx-lm may round them when it saves, without a note in config.json."""
    dtype = found[name].dtype if name in found else default
    return dtype if dtype in ("float32", "bfloat16") else default
