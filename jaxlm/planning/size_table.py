"""The page docs/sizes.md: ten sizes of each architecture, predicted."""

from typing import get_args

from jaxlm.common.architecture.model_size import Architecture, config_of_size, parse_size
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.artifact.artifact import weight_file_bytes

SIZES = ("350M", "750M", "1B", "3B", "7B", "13B", "30B", "70B", "175B", "300B")
_INTRODUCTION = """\
# Ten sizes of each architecture

`jaxlm new-model --table true` prints this page and allocates nothing; a test compares the two. *latent bytes* is the
size of the float32 weight files that training starts from, with their headers. *packed bytes* is the size of the same
model with ternary codes in 2 bits and everything else in float32. With `--float_dtype bfloat16` latent files are half
as large. `jaxlm new-model --params 350M --arch ternary` describes one size, and `--output_dir` writes a blank model.
"""
_COLUMNS = ("size", "parameters", "hidden", "feed-forward", "layers", "heads", "vocabulary", "latent bytes")
_PACKED = "packed bytes"


def size_table() -> str:
    """Return the page in Markdown."""
    return "\n".join([_INTRODUCTION, *map(_section, get_args(Architecture))])


def _section(arch: Architecture) -> str:
    columns = _COLUMNS if arch == "dense" else (*_COLUMNS, _PACKED)
    lines = [columns, ["---:"] * len(columns), *(_row(size, arch) for size in SIZES)]
    return "\n".join([f"## {arch}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _row(size: str, arch: Architecture) -> list[str]:
    config = config_of_size(parse_size(size), arch)
    heads = f"{config.num_heads} on {config.num_kv_heads}" if config.has_attention else "none"
    shape = (config.hidden_size, config.intermediate_size, config.num_layers)
    kinds = ("latent", "packed") if config.has_packed_form else ("latent",)
    nbytes = [f"{weight_file_bytes(config, kind):,}" for kind in kinds]
    return [size, f"{parameter_count(config):,}", *map(str, shape), heads, f"{config.vocab_size:,}", *nbytes]
