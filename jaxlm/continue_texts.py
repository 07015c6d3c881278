"""Many texts from a model: static batches of prompts of similar length."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxlm.common.generation.texts import AddToken, Text, longest_first
from jaxlm.common.sampling import MOST_TEXTS, Sampling, check_prompt
from jaxlm.generate import generate_batch
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params, ternarize


def continue_texts(
    model: LanguageModel,
    params: Params,
    texts: Sequence[Text],
    sampling: Sampling,
    add: AddToken,
    *,
    batch_size: int = MOST_TEXTS,
    allowed: Callable[[int], np.ndarray] | None = None,
) -> Iterator[int]:
    """Generate texts in batches, hand each token to `add`, and yield the number of each text when it has ended.

    `allowed` takes the number of a text before its next token, and returns bools `[V]`: False for those that must not
    come next.
    Numbers of texts in a batch are rounded up to powers of two, for which programs are compiled. Raises ValueError as
    `ContinueTexts` says.
    """
    config = model.config
    for text in texts:
        check_prompt(text.prompt, config.vocab_size, config.max_seq_len)
    ternary, order = ternarize(params, config), longest_first(texts)
    for start in range(0, len(order), batch_size):
        yield from _continue_batch(model, ternary, texts, order[start : start + batch_size], sampling, add, allowed)


def _continue_batch(
    model: LanguageModel,
    params: Params,
    texts: Sequence[Text],
    numbers: Sequence[int],
    sampling: Sampling,
    add: AddToken,
    allowed: Callable[[int], np.ndarray] | None,
) -> Iterator[int]:
    batch = [texts[number] for number in numbers]
    rooms = [min(text.max_tokens, model.config.max_seq_len - len(text.prompt)) for text in batch]
    rows = [*numbers, *[numbers[-1]] * ((1 << (len(batch) - 1).bit_length()) - len(batch))]
    padded = [texts[number] for number in rows]
    left, longest = list(range(len(batch))), dataclasses.replace(sampling, max_tokens=max(rooms))
    prompts, seeds = [text.prompt for text in padded], [text.seed for text in padded]
    masks = None if allowed is None else lambda: np.stack([allowed(number) for number in rows])
    steps = generate_batch(model, params, prompts, longest, seeds, masks)
    for count, tokens in enumerate(steps, 1):
        for index in list(left):
            if add(numbers[index], int(tokens[index])) or count == rooms[index]:
                left.remove(index)
                yield numbers[index]
        if not left:
            return
