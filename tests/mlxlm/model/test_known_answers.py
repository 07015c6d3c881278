import mlx.core as mx
import mlx.nn as nn
import pytest

from jaxlm.common.known_answers.comparison import WrongAnswerError
from mlxlm.model import known_answers
from mlxlm.model.known_answers import check_known_answers


def test_this_mlx_is_right():
    assert check_known_answers() == 13


@pytest.mark.parametrize(
    ("part", "target", "name"),
    [
        ("ternary layer (int8 product)", known_answers, "integer_product"),
        ("ternary layer (outputs)", known_answers, "ternary_linear"),
        ("loss (nats)", nn.losses, "cross_entropy"),
        ("linear recurrence (states)", known_answers, "linear_recurrence"),
    ],
)
def test_a_wrong_kernel_is_caught_and_named(part, target, name, monkeypatch):
    right = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *arguments: right(*arguments) * mx.array(1.001))
    with pytest.raises(WrongAnswerError) as caught:
        check_known_answers.__wrapped__()
    message = str(caught.value)
    assert message.startswith("known answers: MLX ") and part in message and "install another version of mlx" in message
