"""Many texts from a model, with mlx-lm's continuous batching: a text that ends makes room for the next."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_repetition_penalty

from jaxlm.common.generation.texts import AddToken, Text, longest_first
from jaxlm.common.sampling import MOST_TEXTS, PENALTY_WINDOW, Sampling, check_prompt
from mlxlm.model.language_model import LanguageModel
from mlxlm.sampling import make_sampler

# Prompts that are processed together: each is padded to the longest of them.
MOST_PROMPTS = 8


def continue_texts(
    model: LanguageModel,
    texts: Sequence[Text],
    sampling: Sampling,
    add: AddToken,
    *,
    batch_size: int = MOST_TEXTS,
) -> Iterator[int]:
    """Generate up to `batch_size` texts together, hand each token to `add`, yield the number of each that has ended.

    Raises ValueError as `ContinueTexts` says.
    """
    config = model.config
    for text in texts:
        check_prompt(text.prompt, config.vocab_size, config.max_seq_len)
    generator = BatchGenerator(
        model, completion_batch_size=batch_size, prefill_batch_size=min(MOST_PROMPTS, batch_size)
    )
    waiting, running = longest_first(texts)[::-1], dict[int, int]()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * batch_size:  # some wait in the generator for those that end
                number = waiting.pop()
                running[_insert(generator, model, texts[number], sampling)] = number
            with mx.stream(generator.stream):
                _, responses = generator.next()
            for response in responses:
                number, is_last = running[response.uid], bool(response.finish_reason)
                if add(number, response.token) or is_last:
                    if not is_last:
                        generator.remove([response.uid])
                    del running[response.uid]
                    yield number
    finally:
        generator.close()


def _insert(generator: BatchGenerator, model: LanguageModel, text: Text, sampling: Sampling) -> int:
    """Let a text wait in the generator, and return its id there."""
    config, processors = model.config, list[Any]()
    if sampling.repetition_penalty != 1:
        processors.append(make_repetition_penalty(sampling.repetition_penalty, PENALTY_WINDOW))
    (uid,) = generator.insert(
        [list(text.prompt)],
        max_tokens=[min(text.max_tokens, config.max_seq_len - len(text.prompt))],
        samplers=[make_sampler(dataclasses.replace(sampling, seed=text.seed), config.vocab_size)],
        logits_processors=[processors],
    )
    return uid
