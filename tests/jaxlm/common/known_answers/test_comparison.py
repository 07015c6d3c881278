import numpy as np
import pytest

from jaxlm.common.known_answers.comparison import Answer, WrongAnswerError, check_answers

RIGHT = np.array([[1.0, -4.0], [0.5, 2.0]])


def changed(by):
    found = RIGHT.copy()
    found[1, 0] += by
    return found


@pytest.mark.parametrize(
    ("found", "tolerance"), [(RIGHT, 0.0), (changed(0.039), 0.01), (RIGHT.astype(np.float16), 0.0), (changed(0), 1e-9)]
)
def test_what_rounding_explains_is_right(found, tolerance):
    assert check_answers([Answer("part", "name", found, RIGHT, tolerance)] * 2, "a device", "go on") == 2


@pytest.mark.parametrize(
    ("found", "tolerance", "message"),
    [
        (changed(1e-7), 0.0, "part (name) wrong in 1 of 4 numbers: found 0.5, expected 0.5, at most 0 apart"),
        (changed(0.041), 0.01, "part (name) wrong in 1 of 4 numbers: found 0.541, expected 0.5, at most 0.04 apart"),
        (changed(np.nan), 0.5, "part (name) wrong in 1 of 4 numbers: found nan, expected 0.5, at most 2 apart"),
        (changed(np.inf), 0.5, "part (name) wrong in 1 of 4 numbers: found inf, expected 0.5, at most 2 apart"),
        (RIGHT[0], 0.5, "part (name) of shape (2,), expected (2, 2)"),
    ],
)
def test_all_else_is_named(found, tolerance, message):
    answers = [Answer("fine", "it", RIGHT, RIGHT), Answer("part", "name", found, RIGHT, tolerance)]
    with pytest.raises(WrongAnswerError) as caught:
        check_answers(answers, "a device", "Go on")
    assert str(caught.value) == f"known answers: a device computes {message}. Go on"
