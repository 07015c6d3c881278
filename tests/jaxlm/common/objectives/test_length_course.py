import pytest

from jaxlm.common.objectives.length_course import length_course, parse_lengths


def test_lengths_rise_at_their_shares_of_the_steps_and_tokens_stay():
    course = length_course("256:0.3,512:0.5,1024:1", 1024, 10)
    assert [course.length(step) for step in range(12)] == [256] * 3 + [512] * 2 + [1024] * 7
    assert course.longest == 1024
    assert [course.sequences(length, 6) * length for length in (256, 512, 1024)] == [6 * 1024] * 3


def test_without_a_schedule_all_steps_have_one_length():
    course = length_course(None, 128, 5)
    assert {course.length(step) for step in range(5)} == {128} and course.sequences(128, 7) == 7


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("256:0.3,1024:0.9", "a last share of 0.9, expected 1, so that length 1024 is trained to the end"),
        ("512:0.3,256:1", "length 256 after 512, expected lengths that rise"),
        ("256:0.5,512:0.5,1024:1", "share 0.5 after 0.5, expected shares of the steps that rise from 0 to 1"),
        ("256:nan,512:1", "share nan after 0"),
        ("0:0.5,512:1", "length 0 after 0"),
        ("384:0.3,1024:1", "length 384, expected a divisor of the longest, 1024"),
        ("256,1024:1", "found '256,1024:1', expected lengths with the share"),
        ("a:1", "found 'a:1', expected lengths with the share"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule, message):
    with pytest.raises(ValueError, match=f"^seq_len_schedule: .*{message}"):
        parse_lengths(schedule)


def test_a_length_without_a_step_is_refused():
    with pytest.raises(ValueError, match="found length 8 without a step among 4 training steps"):
        length_course("8:0.1,16:1", 16, 4)
