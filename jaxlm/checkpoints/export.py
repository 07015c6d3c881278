"""Parameter tree -> artifact. Only this module quantizes a trained model for release."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.checkpoints.weights import Weight, Weights, tree_weights
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import Kind, parameters, scale_name, stored_tensors
from jaxlm.common.architecture.ternary import latent_weight, quantize_rows, quantize_weight
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

    Every process of a run has to call it; the first one writes. Raises ValueError where the directory is taken, and
    where `kind` is latent but a table is packed as int8.
    """
    read = stored_tensor_reader(tree_weights(params), config, kind)
    if not is_first():
        # Reading a sharded parameter is collective, so the other processes read in the same order.
        for tensor in stored_tensors(config, kind, float_dtype):
            read(tensor.name)
        return
    save_artifact(directory, config, kind, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)


def stored_tensor_reader(weights: Weights, config: ModelConfig, kind: Kind) -> Callable[[str], np.ndarray]:
    """Return a function from the name of a stored tensor to its array. It reads and quantizes one layer at a time.

    The function has to be called for a weight before it is called for the scale of that weight. Of a packed model a
    latent weight is made of its codes and scales (`latent_weight`). It raises ValueError where `kind` is latent but a
    table is packed as int8.
    """
    by_name = {parameter.name: parameter for parameter in parameters(config)}
    scales: dict[str, np.ndarray] = {}  # the scale of the weight that was read last

    def read(name: str) -> np.ndarray:
        if name not in by_name:
            return scales.pop(name)
        parameter = by_name[name]
        weight = weights(parameter)
        if kind == "packed" and parameter.storage == "ternary":
            codes, scale = _ternary_codes(weight, config)
            scales[scale_name(name)] = scale.reshape(config.ternary_form.stored_shape(*parameter.shape))
            return pack(codes)
        if kind == "packed" and parameter.storage == "int8":
            codes, scales[scale_name(name)] = _row_codes(weight)
            return codes
        if isinstance(weight, TernaryWeight):
            return latent_weight(weight.codes, weight.scale, np)
        if not isinstance(weight, np.ndarray):
            raise ValueError(
                f"{name}: found packed weights, expected latent ones, which a packed model does not hold; use its run "
                "directory or its latent artifact"
            )
        return weight.astype(np.float32, copy=False)

    return read


def _ternary_codes(weight: Weight, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 codes `[out, in]` and the float32 scales [blocks, groups] of a latent or a ternary weight."""
    if isinstance(weight, TernaryWeight):
        return weight.codes, weight.scale
    return quantize_weight(weight, config.ternary_form, np)


def _row_codes(weight: Weight) -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 codes `[rows, columns]` and the float32 scales `[rows, 1]` of a float or an int8 table."""
    if isinstance(weight, QuantizedRows):
        return weight.codes, weight.scale
    return quantize_rows(weight, np)
