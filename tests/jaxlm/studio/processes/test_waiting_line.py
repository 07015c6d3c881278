import contextlib

import pytest

from jaxlm.studio.processes.waiting_line import WaitingLine


@pytest.mark.parametrize(("at_once", "before"), [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 2])])
def test_people_are_answered_in_order_a_few_at_a_time(at_once, before):
    line = WaitingLine(at_once)
    with contextlib.ExitStack() as stack:
        first = contextlib.ExitStack()
        places = [first.enter_context(line.place()), *(stack.enter_context(line.place()) for _ in range(3))]
        assert [place() for place in places] == before
        first.close()
        assert [place() for place in places[1:]] == before[:3]


def test_who_leaves_makes_room_also_by_an_error():
    line = WaitingLine(longest=2)
    with line.place(), contextlib.suppress(KeyError), line.place() as second:
        assert second() == 1
        with pytest.raises(ValueError, match="2 people wait for this model, the most that may"), line.place():
            raise AssertionError("there was no room")
        raise KeyError
    with line.place() as only:
        assert only() == 0
