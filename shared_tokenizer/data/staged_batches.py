"""Batches of a run whose sequences change their length: one endless stream after another."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shared_tokenizer.data.batches import Batch


class Stream(Protocol):
    """An endless stream of batches, as `grain.DatasetIterator` is one."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any:
        """Return the place in the stream, as JSON can hold it."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a place that `get_state` returned."""
        ...


class StagedBatches:
    """The batches of all stages. A stage is the step that it begins at, counted from 0, and what opens its stream.

    Each stream is open in its own stage only, and begins there with its first batch: the batch of a step depends on
    the stages and the step alone.
    """

    def __init__(self, stages: Sequence[tuple[int, Callable[[], Stream]]]):
        self._stages = stages
        self._step = 0
        self._opened: tuple[int, Stream] | None = None

    def __next__(self) -> Batch:
        batch = next(self._stream(self._step))
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the number of batches taken, and the place in the stream of the last one."""
        return {"step": self._step, "stream": None if self._step == 0 else self._stream(self._step - 1).get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a place that `get_state` returned."""
        self._step, self._opened = state["step"], None
        # A stage that begins here has a stream of its own, at its first batch.
        if self._step > 0 and self._stage(self._step) == self._stage(self._step - 1):
            self._stream(self._step).set_state(state["stream"])

    def _stage(self, step: int) -> int:
        return max(number for number, (begin, _) in enumerate(self._stages) if begin <= step)

    def _stream(self, step: int) -> Stream:
        number = self._stage(step)
        if self._opened is None or self._opened[0] != number:
            self._opened = number, self._stages[number][1]()
        return self._opened[1]
