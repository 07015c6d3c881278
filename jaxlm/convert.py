"""Conversion that proves itself: write an artifact, read it back, compare it with its source, keep the report."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxlm.export import stored_tensor_reader
from jaxlm.load import artifact_params, load_model
from jaxlm.model import LanguageModel
from jaxlm.run_directory import RunDirectory, is_run_directory
from jaxlm.spec.artifact import Artifact, load_artifact, write_artifact
from jaxlm.spec.config import ModelConfig
from jaxlm.spec.manifest import sealed_directory
from jaxlm.spec.names import Kind, tensor_bytes
from jaxlm.ternary_linear import Params, TernaryWeight, quantize_params, ternarize

REPORT = "conversion.json"
PROBE_TOKENS = 64


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote, compared with what it was made from."""

    tensors: list[dict[str, Any]]
    """Name, shape, dtype and bytes of every tensor in the file."""
    bytes_predicted: int
    bytes_found: int
    ternary_codes: int
    """Codes of the source, quantized by the training program's own compiled function."""
    codes_differing: int
    scales_differing: int
    logits_max_difference: float
    """Between source and file on a fixed sequence, in float32."""
    logits_mean_difference: float
    kl_divergence: float
    """Mean over positions of KL(source || file), in nats."""
    top1_agreement: float
    """Share of positions with the same likeliest token."""

    @property
    def exact(self) -> bool:
        """Whether sizes, codes and scales are all as they should be."""
        return self.bytes_predicted == self.bytes_found and not self.codes_differing and not self.scales_differing


def convert(source: Path, destination: Path, kind: Kind, float_dtype: str = "float32") -> ConversionReport:
    """Write a run directory or an artifact as an artifact of another kind, atomically, with its report inside.

    Raises ValueError, leaving nothing behind, where the source has not what is asked for or where a size, a
    code or a scale of the file written is not that of the source.
    """
    model, params, _ = load_model(source)
    if kind == "packed" and not model.config.has_packed_form:
        raise ValueError(f"{source}: a dense model, which has nothing to pack; convert it to latent")
    tokenizer_dir = RunDirectory(source).tokenizer if is_run_directory(source) else source
    with sealed_directory(destination) as temporary:
        read = stored_tensor_reader(params, model.config, kind)
        write_artifact(temporary, model.config, kind, read, float_dtype=float_dtype, tokenizer_dir=tokenizer_dir)
        report = compare(model.config, params, load_artifact(temporary, verify=False))
        if not report.exact:
            raise ValueError(
                f"{destination}: not written: found {report.bytes_found} bytes of {report.bytes_predicted} predicted, "
                f"{report.codes_differing} codes and {report.scales_differing} scales unlike the source"
            )
        (temporary / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    return report


def compare(config: ModelConfig, source: Params, artifact: Artifact) -> ConversionReport:
    """Compare a file, as it reads back, with the parameters it was made from."""
    found = artifact_params(artifact)
    ours, theirs = _ternary_leaves(source, config), _ternary_leaves(found, config)
    return ConversionReport(
        tensors=[asdict(tensor) | {"bytes": tensor.nbytes} for tensor in artifact.stored],
        bytes_predicted=tensor_bytes(config, artifact.kind, artifact.float_dtype),
        bytes_found=sum(tensor.nbytes for tensor in artifact.stored),
        ternary_codes=sum(weight.codes.size for weight in ours.values()),
        codes_differing=sum(int(jnp.sum(ours[path].codes != theirs[path].codes)) for path in ours),
        scales_differing=sum(int(jnp.sum(ours[path].scale != theirs[path].scale)) for path in ours),
        **_compare_logits(config, source, found),
    )


def _ternary_leaves(params: Params, config: ModelConfig) -> dict[str, TernaryWeight]:
    """Every ternary matrix, by dotted path; latent ones are quantized as the training step quantizes them."""
    flat = flatten_dict(params, sep=".")
    packed = {path: leaf for path, leaf in flat.items() if isinstance(leaf, TernaryWeight)}
    return packed | jax.jit(quantize_params, static_argnums=1)(params, config)


def _compare_logits(config: ModelConfig, source: Params, found: Params) -> dict[str, float]:
    length = min(PROBE_TOKENS, config.max_seq_len)
    token_ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    apply = jax.jit(LanguageModel(config).apply)
    logits = apply({"params": ternarize(source, config)}, token_ids)
    other = apply({"params": ternarize(found, config)}, token_ids)
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    difference = jnp.abs(logits - other)
    return {
        "logits_max_difference": float(jnp.max(difference)),
        "logits_mean_difference": float(jnp.mean(difference)),
        "kl_divergence": float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))),
        "top1_agreement": float(jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(other, -1))),
    }
