"""Parameter tree -> artifact. The one place where a trained model is quantized for shipping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxlm.distributed import is_first, to_host
from jaxlm.layers import QuantizedRows
from jaxlm.spec.artifact import save_artifact
from jaxlm.spec.config import ModelConfig
from jaxlm.spec.names import Kind, Parameter, parameters, scale_name, stored_tensors
from jaxlm.spec.ternary import pack, quantize_rows, quantize_weight
from jaxlm.ternary_linear import Params, TernaryWeight


def export_artifact(
    directory: Path,
    config: ModelConfig,
    params: Params,
    kind: Kind,
    *,
    float_dtype: str = "float32",
    tokenizer_dir: Path | None = None,
) -> None:
    """Write parameters as an artifact: latent floats, or packed codes and scales.

    Every process of a run has to call it, and the first one writes. Raises ValueError where latent weights are asked
    of a packed model, which has none.
    """
    read = stored_tensor_reader(params, config, kind)
    if not is_first():
        for tensor in stored_tensors(config, kind, float_dtype):
            read(tensor.name)
        return
    save_artifact(directory, config, kind, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)


def stored_tensor_reader(params: Params, config: ModelConfig, kind: Kind) -> Callable[[str], np.ndarray]:
    """A function from the name of a stored tensor to its array; one layer is fetched and quantized at a time."""
    flat = flatten_dict(params)
    by_name = {parameter.name: parameter for parameter in parameters(config)}
    scales: dict[str, np.ndarray] = {}  # of the weight read last; a scale follows its weight

    def read(name: str) -> np.ndarray:
        if name not in by_name:
            return scales.pop(name)
        parameter = by_name[name]
        value = flat[parameter.path]
        if kind == "packed" and parameter.storage == "ternary":
            codes, scale = ternary_form(value, parameter, config)
            scales[scale_name(name)] = scale.reshape(1)
            return pack(codes)
        if kind == "packed" and parameter.storage == "int8":
            codes, scales[scale_name(name)] = _row_form(value)
            return codes
        if isinstance(value, TernaryWeight | QuantizedRows):
            raise ValueError(
                f"{name}: latent weights were asked of a packed model, which holds none; start from its run directory "
                "or latent artifact"
            )
        return _layer(value, parameter).astype(np.float32)

    return read


def ternary_form(value: Any, parameter: Parameter, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[out, in]` and scale of one ternary parameter, quantized here only if it is latent."""
    if isinstance(value, TernaryWeight):
        return _layer(value.codes, parameter), _layer(value.scale, parameter)
    codes, scale = quantize_weight(_layer(value, parameter), config.scale_dtype, np)
    return codes, np.asarray(scale)


def _row_form(value: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(value, QuantizedRows):
        return to_host(value.codes), to_host(value.scale)
    return quantize_rows(to_host(value), np)


def _layer(leaf: Any, parameter: Parameter) -> np.ndarray:
    return to_host(leaf if parameter.layer is None else leaf[parameter.layer])
