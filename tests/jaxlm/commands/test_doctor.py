import jax.numpy as jnp
import pytest

import jaxlm.ops.int8_product
from jaxlm.commands.doctor import DoctorConfig, main
from jaxlm.training.known_answers import check_known_answers


def test_a_machine_that_computes_right_is_well(capsys):
    main(DoctorConfig())
    printed = capsys.readouterr().out
    assert printed.count("ok   ") == 3 and "WRONG" not in printed
    assert all(word in printed for word in ("processor", "attention", "int8 products", "XLA_FLAGS", "jax", "mlx"))


def test_a_wrong_kernel_is_caught_with_a_remedy(capsys, monkeypatch):
    right = jaxlm.ops.int8_product._signed
    monkeypatch.setattr(
        jaxlm.ops.int8_product, "_signed", lambda x, codes: right(x, codes).at[..., -1].add(jnp.int32(1))
    )
    check_known_answers.cache_clear()
    with pytest.raises(SystemExit) as ended:
        main(DoctorConfig())
    printed = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 1
    assert "WRONG known answers: WrongAnswerError: known answers: jaxlib" in printed
    assert "ternary layer (int8 product of 3 rows) wrong in 3 of 288 numbers" in printed
    assert "install other versions of jax and jaxlib" in printed
