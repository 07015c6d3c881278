"""Programs of a model with their unit tests: what they may do, and what ends them."""

import time

import pytest

from jaxlm.common.rewards.unit_tests import UnitTests

PROMPT = "def double(x):\n"
ROW = {"prompt": PROMPT, "tests": ["assert double(2) == 4", "assert double(0) == 0"]}


@pytest.fixture(scope="module")
def unit_tests():
    return UnitTests()


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("    return 2 * x\n", 1.0),
        ("    import math\n    return math.floor(2 * x)\n", 1.0),
        ("    print(x)\n    return 2 * x\n", 1.0),
        ("    return x\n", 0.5),
        ("    return x +\n", 0.0),
        ("    raise SystemExit\n", 0.0),
        ("    import os\n    os._exit(0)\n", 0.0),
        ("    open('/tmp/written_by_a_model', 'w')\n    return 2 * x\n", 0.0),
        ("    import socket\n    return 2 * x\n", 0.0),
        ("    return 2 * x if [0] * 10**9 else 0\n", 0.0),
    ],
)
def test_share_of_tests_that_pass(unit_tests, answer, reward):
    assert unit_tests(PROMPT, answer, ROW) == reward


def test_a_program_without_end_gets_what_passed_in_its_time(unit_tests):
    start = time.monotonic()
    assert unit_tests(PROMPT, "    while x == 0: pass\n    return 2 * x\n", ROW) == 0.5
    assert time.monotonic() - start < 6


def test_a_program_does_not_change_the_next_one(unit_tests):
    assert unit_tests(PROMPT, "    return 2 * x\nimport math\nmath.sqrt = None\n", ROW) == 1.0
    assert unit_tests(PROMPT, "    return 2 * int(__import__('math').sqrt(x * x))\n", ROW) == 1.0
