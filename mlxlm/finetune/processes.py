"""Several processes that fine-tune one model (`mlx.launch`): who writes, and how they agree."""

import mlx.core as mx


def is_first() -> bool:
    """Whether this process writes the files that there is one of."""
    return mx.distributed.init().rank() == 0


def any_of(found: bool) -> bool:
    """Whether it is so in any process; all of them have to ask."""
    group = mx.distributed.init()
    return found if group.size() == 1 else bool(mx.distributed.all_sum(mx.array(int(found)), group=group))


def wait_for_all() -> None:
    """Return when every process has come here."""
    any_of(False)
