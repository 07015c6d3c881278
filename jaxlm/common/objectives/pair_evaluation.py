"""The evaluation of preferences on held-out pairs, the same in both frameworks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.data.examples import Example


@dataclass(frozen=True)
class PairEvaluation(Evaluation):
    """Totals over pairs: `nats`, `tokens` and `text_bytes` are those of the chosen answers."""

    means: Mapping[str, float] = field(default_factory=dict)
    """Means over the pairs: the loss of the objective and its metrics, by name."""

    @property
    def loss(self) -> float:
        """Return the mean loss of the objective."""
        return self.means["loss"]

    @property
    def values(self) -> dict[str, float]:
        """Return the numbers as a line of metrics holds them."""
        return {f"val/{name}": value for name, value in self.means.items()} | {"val/bits_per_byte": self.bits_per_byte}

    @property
    def words(self) -> str:
        """Return the loss and the accuracy for the history of a run."""
        return f"held-out {self.loss:.3f}  accuracy {self.means['accuracy']:.1%}"

    def __str__(self) -> str:
        return (
            f"{self.loss:.4f} a pair  accuracy {self.means['accuracy']:.1%}  margin {self.means['margin']:.3f}  chosen "
            f"answers {self.bits_per_byte:.4f} bits per byte"
        )


def evaluate_pairs(
    sums: Callable[[Example], tuple[Any, Any, Mapping[str, Any]]],
    batches: Iterable[Example],
    token_bytes: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> PairEvaluation:
    """Return the evaluation of batches `[B, 2, L]`.

    `sums` returns the summed loss, the number of pairs and the summed metrics of a batch. `token_bytes` int32
    `[vocab_size]` is `Tokenizer.token_bytes`; `check` is called before every batch, and may raise.
    """
    totals: dict[str, float] = {}
    pairs, tokens, text_bytes = 0, 0, 0
    for batch in batches:
        check()
        loss, count, metrics = sums(batch)
        for name, value in {"loss": loss, **metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value)
        pairs += int(count)
        chosen = batch["targets"][:, 0][batch["loss_mask"][:, 0]]
        tokens += len(chosen)
        text_bytes += int(token_bytes[chosen].sum())
    means = {name: total / pairs for name, total in totals.items()}
    return PairEvaluation(-totals["chosen_logprob"], tokens, text_bytes, means=means)
