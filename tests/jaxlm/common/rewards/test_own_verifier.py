"""A verifier of the user's own: right, wrong, raising, hanging, printing, ending, no number."""

import math
import textwrap

import pytest

from jaxlm.common.rewards.own_verifier import OwnVerifier
from jaxlm.common.rewards.task import VerifierFault, grade

FILE = """
import os, sys, time

def reward(prompt, answer, row):
    if answer == "raises":
        return int(answer)
    if answer == "hangs":
        time.sleep(60)
    if answer == "ends":
        os._exit(3)
    if answer == "leaves":
        sys.exit(1)
    if answer == "reads":
        return float(len(sys.stdin.read()))
    print("a line of the user's own", flush=True)
    os.write(1, b"and one past Python")
    return {"nan": float("nan"), "none": None, "text": "1", "true": True}.get(answer, float(answer == row["answer"]))

number = 3
"""
ROW = {"prompt": "2+2=", "answer": "4"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my_rewards.py"
    path.write_text(textwrap.dedent(FILE))
    return path


@pytest.fixture(scope="module")
def verifier(path):
    verifier = OwnVerifier(f"{path}:reward", seconds=0.5)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(("answer", "reward"), [("4", 1.0), ("5", 0.0), ("true", 1.0), ("reads", 0.0)])
def test_a_verifier_that_prints_gives_its_reward(verifier, answer, reward):
    assert verifier("2+2=", answer, ROW) == reward


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ("raises", "raised", r"raised ValueError: invalid literal .*, line 6 of .*my_rewards.py"),
        ("hangs", "too_slow", "ran for 0.5 s and had not ended"),
        ("ends", "ended", "its process ended with exit code 3"),
        ("leaves", "raised", "raised SystemExit: 1"),
    ],
)
def test_a_fault_is_named_and_the_next_answer_is_rewarded(verifier, answer, kind, reason):
    with pytest.raises(VerifierFault, match=reason) as fault:
        verifier("2+2=", answer, ROW)
    assert fault.value.kind == kind
    assert verifier("2+2=", "4", ROW) == 1.0


def test_faults_are_counted_and_have_no_reward(verifier):
    grades = grade(verifier, [ROW] * 4, ["4", "raises", "5", "ends"])
    assert grades.rewards.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert grades.faults == {"raised": 1, "ended": 1}
    assert "raised ValueError" in grades.first_fault and "(at answer 'raises')" in grades.first_fault


def test_a_verifier_that_fails_at_every_answer_ends_the_run(verifier):
    with pytest.raises(ValueError, match=r"found no reward for any of 2 answers, the first time because .* raised Val"):
        grade(verifier, [ROW] * 2, ["raises", "raises"])


@pytest.mark.parametrize(("answer", "found"), [("nan", "nan"), ("none", "None"), ("text", "'1'")])
def test_what_is_no_finite_number_is_refused(verifier, answer, found):
    with pytest.raises(ValueError, match=f"verifier: found .*{found}.* for the answer '{answer}' to '2\\+2='"):
        grade(verifier, [ROW], [answer])


@pytest.mark.parametrize("value", [math.inf, "1", None, [1.0, 2.0]])
def test_a_built_in_verifier_is_checked_too(value):
    with pytest.raises(ValueError, match="expected a finite number"):
        grade(lambda prompt, answer, row: value, [ROW], ["4"])


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("{path}:missing", "could not be imported: AttributeError: found no function missing"),
        ("{path}:number", "could not be imported: AttributeError"),
        ("{path}", "expected path/to/file.py:function"),
        ("nowhere.py:reward", "nowhere.py: found no such file"),
        ("jaxlm.no_module:reward", "could not be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_not_there_is_named_at_once(path, target, reason):
    with pytest.raises(ValueError, match=reason):
        OwnVerifier(target.format(path=path), 1.0)


def test_a_file_that_raises_when_imported_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    with pytest.raises(
        ValueError, match=r"ModuleNotFoundError: No module named 'nothing_like_this', line 1 of .*broken"
    ):
        OwnVerifier(f"{tmp_path / 'broken.py'}:reward", 1.0)
