"""The command `mlxlm generate`: text from a model."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_repetition_penalty

from jaxlm.common.command_line import make_console, run_command
from jaxlm.common.generation.choice import choose_answer
from jaxlm.common.generation.completions import CompletingModel, complete_prompts
from jaxlm.common.sampling import PENALTY_WINDOW, Sampling, check_prompt, print_speed, stop_set
from mlxlm.continue_texts import continue_texts
from mlxlm.generate_config import AdaptedGenerateConfig
from mlxlm.load import load_model, model_fingerprint
from mlxlm.model.language_model import LanguageModel
from mlxlm.sampling import Sampler, make_sampler
from shared_tokenizer.model_chat_format import reply_stop_ids
from shared_tokenizer.tokenizers.tokenizer import TextStream

# The tokens so far `[n]` and the logits of the next one `[1, V]` -> logits.
LogitsProcessor: TypeAlias = Callable[[mx.array, mx.array], mx.array]


def generate(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling, stop: int | Collection[int] | None = None
) -> Iterator[int]:
    """Continue one prompt up to any id of `stop`: yield token ids as they are generated, without the one that stops.

    Raises ValueError if the prompt is empty, holds an id outside the vocabulary, or leaves no room in the model's
    context.
    """
    check_prompt(prompt, model.config.vocab_size, model.config.max_seq_len)
    max_tokens = min(sampling.max_tokens, model.config.max_seq_len - len(prompt))
    stops = stop_set(stop)
    for token in sample_tokens(model, prompt, sampling, max_tokens):
        if token in stops:
            return
        yield token


def sample_tokens(
    model: LanguageModel,
    prompt: Sequence[int],
    sampling: Sampling,
    max_tokens: int,
    cache: list[Any] | None = None,
    *,
    earlier: Sequence[int] = (),
    sampler: Sampler | None = None,
) -> Generator[int]:
    """Yield at most `max_tokens` tokens that continue a prompt, after the `earlier` ones, which the cache holds.

    They are drawn by the `sampler`, by default one that begins with the seed.
    """
    steps = generate_step(
        mx.array(list(prompt)),
        model,
        max_tokens=max_tokens,
        sampler=sampler or make_sampler(sampling, model.config.vocab_size),
        prompt_cache=cache,
        logits_processors=_repetition_penalty(sampling, earlier),
    )
    with contextlib.closing(steps):
        for token, _ in steps:
            yield int(token)


def _repetition_penalty(sampling: Sampling, earlier: Sequence[int]) -> list[LogitsProcessor]:
    """Return mlx-lm's penalty, which here sees the tokens in the cache too: what is cached changes no text."""
    if sampling.repetition_penalty == 1:
        return []
    penalize = make_repetition_penalty(sampling.repetition_penalty, PENALTY_WINDOW)
    before = mx.array(list(earlier[-PENALTY_WINDOW:]), mx.int32)
    return [lambda tokens, logits: penalize(mx.concatenate([before, tokens[-PENALTY_WINDOW:]]), logits)]


def main(config: AdaptedGenerateConfig) -> None:
    """Generate text from a model with MLX, and print it as it comes. With --prompts continue all texts of a file."""
    model, tokenizer = load_model(config.model, adapter_path=config.adapter_path)
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so there is no text to continue")
    ends = reply_stop_ids(Path(config.model), tokenizer, config.adapter_path)
    if config.prompts is not None or config.chooses:
        completing = CompletingModel(
            tokenizer,
            model.config.vocab_size,
            model.config.max_seq_len,
            model_fingerprint(config.model, config.adapter_path),
            ends,
            functools.partial(continue_texts, model, batch_size=config.batch_size),
            config.adapter_path,
        )
        if config.chooses:
            print(config.prompt + choose_answer(config, completing))
        else:
            complete_prompts(config, completing, make_console())
        return
    prompt = tokenizer.encode_to_continue(config.prompt)
    check_prompt(prompt, model.config.vocab_size, model.config.max_seq_len)
    stream = TextStream(tokenizer)
    sys.stdout.write(config.prompt)
    times = []
    for token in generate(model, prompt, config, ends):
        times.append(time.perf_counter())
        sys.stdout.write(stream.add(token))
        sys.stdout.flush()
    print(stream.end())
    print_speed(times)


if __name__ == "__main__":
    run_command(main)
