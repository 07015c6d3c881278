"""Several processes that fine-tune one model (`mlx.launch`): the one that writes, and agreement among all."""

import mlx.core as mx


def is_first() -> bool:
    """Return True if this process writes the files of the run."""
    return mx.distributed.init().rank() == 0


def any_of(found: bool) -> bool:
    """Return True if `found` is True in any process. All processes have to call this together."""
    group = mx.distributed.init()
    return found if group.size() == 1 else bool(mx.distributed.all_sum(mx.array(int(found)), group=group))


def wait_for_all() -> None:
    """Wait until every process has called this."""
    any_of(False)
