import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.model.layers
import jaxlm.model.mixers
import jaxlm.ops.cross_entropy
import jaxlm.ops.int8_product
import jaxlm.ops.linear_recurrence
import jaxlm.ops.ternary_linear
import jaxlm.ops.tiled_attention
from jaxlm.common.known_answers.comparison import WrongAnswerError, check_answers
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.training import known_answers
from jaxlm.training.known_answers import check_known_answers, parts
from jaxlm.training.optimizer import make_optimizer


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_this_compiler_is_right(dtype):
    assert check_known_answers(jax.devices()[0], jnp.dtype(dtype), "xla") == 36


def test_gradients_of_rounded_operands_are_right_too():
    assert check_known_answers(jax.devices()[0], jnp.dtype("float32"), "xla", "bfloat16") == 36


def wrong(module, name, change):
    """Return a change of one function of a module: its result goes through `change`."""

    def apply(monkeypatch):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, **named: change(right(*arguments, **named)))

    return apply


def last_one_off(array):
    return array.at[..., -1].add(jnp.asarray(1, array.dtype))


def shifted(pair):
    return pair[0] * 1.001, pair[1]


INJECTED = {
    "codes": (
        "ternary layer",
        wrong(jaxlm.ops.ternary_linear, "quantize_weight", lambda p: (last_one_off(p[0]), p[1])),
    ),
    "scale": ("ternary layer", wrong(jaxlm.ops.ternary_linear, "quantize_weight", lambda p: (p[0], p[1] * 1.0000002))),
    "few rows": ("ternary layer", wrong(jaxlm.ops.int8_product, "_signed", last_one_off)),
    "many rows": ("ternary layer", wrong(jaxlm.ops.ternary_linear, "scaled_product", last_one_off)),
    "gradient": (
        "ternary layer",
        wrong(jaxlm.ops.ternary_linear, "all_gather_codes", lambda codes: codes.at[-1, -1].set(0)),
    ),
    "loss": ("loss", wrong(jaxlm.ops.cross_entropy, "_chunk_nats", shifted)),
    "loss's gradient": (
        "loss",
        wrong(jaxlm.ops.cross_entropy, "_dequantized", lambda pair: (pair[0] * 1.001, pair[1])),
    ),
    "attention": ("attention", wrong(jaxlm.ops.tiled_attention, "_attend_tile", shifted)),
    "scores": ("attention", wrong(jaxlm.ops.tiled_attention, "_scores", lambda scores: scores * 1.001)),
    "recurrence": ("linear recurrence", wrong(jaxlm.ops.linear_recurrence, "in_steps", last_one_off)),
    "recurrence's gradient": (
        "linear recurrence",
        wrong(jaxlm.ops.linear_recurrence, "_backward_in_steps", lambda grads: (last_one_off(grads[0]), *grads[1:])),
    ),
    "rotary": ("dense block", wrong(jaxlm.model.mixers, "rotary", lambda x: x[:, ::-1])),
    "norm": ("dense block", wrong(jaxlm.model.layers.RMSNorm, "__call__", lambda x: x * 1.001)),
    "optimizer": (
        "optimizer step",
        lambda monkeypatch: monkeypatch.setattr(
            known_answers, "make_optimizer", lambda recipe, steps: make_optimizer(recipe, steps // 2)
        ),
    ),
    "sums": ("product with a sum", wrong(known_answers.jnp, "square", lambda x: x.at[-1].add(1))),
}


@pytest.mark.parametrize("name", INJECTED)
def test_a_wrong_kernel_is_caught_and_named(name, monkeypatch):
    part, inject = INJECTED[name]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    inject(monkeypatch)
    with jax.set_mesh(mesh):
        answers = list(parts(mesh, jnp.dtype(jnp.float32), "xla")[part]())
    with pytest.raises(WrongAnswerError) as caught:
        check_answers(answers, "jaxlib 1.2 on a processor", "Do this")
    message = str(caught.value)
    pattern = (
        r"known answers: jaxlib 1\.2 on a processor computes .*wrong in [\d,]+ of [\d,]+ numbers: found .*, expected .*"
    )
    assert re.fullmatch(rf"{pattern}, at most .* apart\. Do this", message)
    assert part in message


def test_the_error_names_the_version_and_the_flag(monkeypatch):
    wrong(jaxlm.ops.linear_recurrence, "in_steps", lambda x: x * np.nan)(monkeypatch)
    with pytest.raises(
        ValueError, match=r"known answers: jaxlib \S+ on cpu in float32 computes linear recurrence"
    ) as error:
        check_known_answers.__wrapped__(jax.devices()[0], jnp.dtype(jnp.float32), "xla")
    assert "set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce before Python starts" in str(error.value)
