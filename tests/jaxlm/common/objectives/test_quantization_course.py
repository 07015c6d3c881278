import pytest

from jaxlm.common.objectives.quantization_course import QuantizationCourse, quantization_course


def course(**given):
    settings = {"quantizes": False, "float_until": None, "mixed_steps": None, "has_new_norms": False}
    return quantization_course(**settings | {"num_train_steps": 10} | given)


def test_the_share_is_0_then_rises_then_stays_1():
    found = QuantizationCourse(float_steps=2, mixed_steps=4)
    assert [found.share(step) for step in range(8)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [found.phase(step) for step in range(8)] == ["float"] * 3 + ["mixed"] * 3 + ["ternary"] * 2
    assert found.phases(0, 7) == ["float", "mixed", "ternary"]
    assert found.phases(4, 7) == ["mixed", "ternary"] and found.phases(6, 7) == ["ternary"]


def test_a_sudden_change_has_no_mixed_steps():
    found = QuantizationCourse(float_steps=3)
    assert found.phases(0, 5) == ["float", "ternary"] and [found.share(2), found.share(3)] == [0, 1]
    assert QuantizationCourse().phases(0, 5) == ["ternary"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0, 0)),
        ({"quantizes": True}, (0, 5)),
        ({"quantizes": True, "mixed_steps": 9}, (0, 9)),
        ({"quantizes": True, "float_until": 4}, (4, 3)),
        ({"float_until": 0.3}, (3, 0)),
        ({"float_until": 9}, (9, 0)),
        ({"float_until": 0.5, "mixed_steps": 2}, (5, 2)),
    ],
)
def test_settings_become_steps(given, expected):
    found = course(**given)
    assert (found.float_steps, found.mixed_steps) == expected


def test_the_last_step_is_one_of_the_ternary_model():
    with pytest.raises(ValueError, match="quantize_steps: found 10, expected at most 9, so that the last of 10"):
        course(mixed_steps=10)
    with pytest.raises(ValueError, match="quantize_from_step: found 10, expected at most 9, so that the last of 10"):
        course(float_until=10)
    with pytest.raises(ValueError, match="quantize_steps: found 5, expected at most 4"):
        course(float_until=5, mixed_steps=5)
