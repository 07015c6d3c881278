"""Numbers of a group, against their definitions."""

import itertools

import numpy as np
import pytest

from jaxlm.common.rewards.estimates import group_advantages, majority, mean_majority, mean_pass_at_k, pass_at_k


def test_advantages_are_distances_from_the_mean_of_a_group_in_its_deviations():
    rewards = np.array([1, 0, 0, 0, 1, 0.2, 0.1, 0.1, 0.1, 0.5], np.float32)
    groups = np.array([7, 7, 7, 7, 2, 2, 4, 4, 4, 9])
    found = group_advantages(rewards, groups)
    assert found.dtype == np.float32
    for group in (7, 2):
        those = rewards[groups == group]
        np.testing.assert_allclose(found[groups == group], (those - those.mean()) / those.std(), rtol=1e-6)
    assert not found[groups == 4].any() and not found[groups == 9].any()


@pytest.mark.parametrize(("samples", "passed"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1)])
def test_pass_at_k_is_the_share_of_all_choices_that_hold_one_that_passes(samples, passed):
    outcomes = [index < passed for index in range(samples)]
    for k in range(1, samples + 1):
        expected = np.mean([any(chosen) for chosen in itertools.combinations(outcomes, k)])
        assert pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_pass_at_k_of_more_samples_than_there_are_is_refused():
    with pytest.raises(ValueError, match="k: found 3, expected 1 to the 2 samples"):
        pass_at_k(2, 1, 3)


def test_mean_pass_at_k_is_that_of_prompts():
    passed = np.array([[True, False], [False, False]])
    assert mean_pass_at_k(passed, 1) == pytest.approx(0.25)
    assert mean_pass_at_k(passed, 2) == pytest.approx(0.5)


def test_the_majority_is_the_first_of_the_most_frequent_answers():
    assert majority(["5", " 7", "7", "5 "]) == 0
    assert majority(["1", "7", "7\n"]) == 1


def test_the_mean_majority_of_one_is_pass_at_1_and_of_all_is_the_majority():
    answers = [["3", "3", "4", "5"], ["1", "2", "2", "2"]]
    passed = np.array([[True, True, False, False], [True, False, False, False]])
    assert mean_majority(answers, passed, 4) == pytest.approx(0.5)
    assert mean_majority(answers, passed, 1, draws=2000) == pytest.approx(mean_pass_at_k(passed, 1), abs=0.03)
