"""Parameter tree -> artifact. The one place where a trained model is quantized for shipping."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.checkpoints.weights import Weight, Weights, tree_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import Kind, parameters, scale_name, stored_tensors
from jaxlm.common.architecture.ternary import pack, quantize_rows, quantize_weight
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.model.layers import QuantizedRows
from jaxlm.ops.ternary_linear import Params, TernaryWeight
from jaxlm.parallel.distributed import is_first


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
    read = stored_tensor_reader(tree_weights(params), config, kind)
    if not is_first():
        for tensor in stored_tensors(config, kind, float_dtype):
            read(tensor.name)
        return
    save_artifact(directory, config, kind, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)


def stored_tensor_reader(weights: Weights, config: ModelConfig, kind: Kind) -> Callable[[str], np.ndarray]:
    """A function from the name of a stored tensor to its array; one layer is read and quantized at a time.

    A scale has to be asked for after its weight. Raises ValueError where latent weights are asked of a packed model.
    """
    by_name = {parameter.name: parameter for parameter in parameters(config)}
    scales: dict[str, np.ndarray] = {}  # of the weight read last

    def read(name: str) -> np.ndarray:
        if name not in by_name:
            return scales.pop(name)
        parameter = by_name[name]
        weight = weights(parameter)
        if kind == "packed" and parameter.storage == "ternary":
            codes, scale = _ternary_form(weight, config)
            scales[scale_name(name)] = scale.reshape(1)
            return pack(codes)
        if kind == "packed" and parameter.storage == "int8":
            codes, scales[scale_name(name)] = _row_form(weight)
            return codes
        if not isinstance(weight, np.ndarray):
            raise ValueError(
                f"{name}: latent weights were asked of a packed model, which holds none; start from its run directory "
                "or latent artifact"
            )
        return weight.astype(np.float32, copy=False)

    return read


def _ternary_form(weight: Weight, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[out, in]` and scale of one ternary parameter, quantized here only if it is latent."""
    if isinstance(weight, TernaryWeight):
        return weight.codes, weight.scale
    codes, scale = quantize_weight(weight, config.scale_dtype, np)
    return codes, np.asarray(scale)


def _row_form(weight: Weight) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(weight, QuantizedRows):
        return weight.codes, weight.scale
    return quantize_rows(weight, np)
