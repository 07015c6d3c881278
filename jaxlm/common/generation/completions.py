"""The completions of a file of prompts, written as jsonl in the order of the prompts."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.common.generation.begun_completions import BegunCompletions, Key
from jaxlm.common.generation.prompts import Prompt, read_prompts
from jaxlm.common.generation.texts import ContinueTexts, Text
from jaxlm.common.sampling import LARGEST_SEED, GenerateConfig, check_prompt, sampling_of
from shared_tokenizer.manifest import refuse_inside_sealed, write_file
from shared_tokenizer.model_chat_format import choose_chat_format
from shared_tokenizer.tokenizers.tokenizer import TextStream, Tokenizer

# Bad rows that are named one by one.
MOST_NAMED = 10


@dataclass(frozen=True)
class CompletingModel:
    """A model that completes prompts, in any framework."""

    tokenizer: Tokenizer
    vocab_size: int
    max_seq_len: int
    fingerprint: str
    """Identity of its weights, and of its adapters."""
    ends: Collection[int]
    """Ids that end a text."""
    continue_texts: ContinueTexts
    adapter_path: str | None = None


@dataclass
class Completion:
    """A text as its tokens come."""

    ends: Collection[int]
    stream: TextStream
    text: str = ""
    num_tokens: int = 0
    has_stopped: bool = False

    def add(self, token: int) -> bool:
        self.num_tokens += 1
        self.has_stopped = token in self.ends
        self.text += "" if self.has_stopped else self.stream.add(token)
        return self.has_stopped


def seed_of(seed: int, number: int, sample: int) -> int:
    """Return the seed of a sample of a prompt, `number` from 0: `generate --prompt` writes the same text with it."""
    return int(np.random.SeedSequence([seed, number, sample]).generate_state(1)[0]) & LARGEST_SEED


def complete_prompts(
    config: GenerateConfig,
    model: CompletingModel,
    console: Any,
) -> None:
    """Write `num_samples` completions of each prompt of a file, with a progress bar on a rich console.

    A row of the output has the keys of its prompt, then `line`, `sample`, `seed`, `completion`, `finish_reason` (`stop`
    or `length`) and `tokens`; of a prompt that cannot be continued `line`, `error` and `row`. Raises ValueError as
    `read_prompts` does.
    """
    from rich.progress import track

    source, output = Path(config.prompts or ""), Path(config.output or "")
    refuse_inside_sealed(output)
    if not output.absolute().parent.is_dir() or output.is_dir():
        raise ValueError(f"output: found {str(output)!r}, expected a file in a directory that exists")
    prompts = read_prompts(
        source,
        model.tokenizer,
        lambda: choose_chat_format(Path(config.model), model.tokenizer, adapter_path=model.adapter_path),
        lambda ids: check_prompt(ids, model.vocab_size, model.max_seq_len),
    )
    _name_bad(source, prompts, console.print)
    keys = [
        (number, sample)
        for number, prompt in enumerate(prompts)
        if prompt.error is None
        for sample in range(config.num_samples)
    ]
    belongs_to = {
        "prompts": hashlib.sha256(source.read_bytes()).hexdigest(),
        "model": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "sampling": dataclasses.asdict(sampling_of(config)),
        "num_samples": config.num_samples,
        "ends": sorted(model.ends),
    }
    with BegunCompletions(output, belongs_to, console.print) as begun:
        left = [key for key in keys if key not in begun.done]
        ended = _complete(config, model, prompts, left, begun)
        for _ in track(ended, "texts", total=len(left), console=console, transient=True):
            pass
    write_file(output, b"".join(map(_json_line, _rows(prompts, begun.done, config.num_samples))))
    begun.remove()
    console.print(f"{len(keys):,} texts: {output}")


def _complete(
    config: GenerateConfig,
    model: CompletingModel,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    begun: BegunCompletions,
) -> Iterator[int]:
    """Generate the texts of `keys`, write each when it ends, and yield its number."""
    seeds = [seed_of(config.seed, *key) for key in keys]
    texts = [Text(prompts[key[0]].ids, config.max_tokens, seed) for key, seed in zip(keys, seeds, strict=True)]
    found = dict[int, Completion]()

    def add(number: int, token: int) -> bool:
        if number not in found:
            found[number] = Completion(model.ends, TextStream(model.tokenizer))
        return found[number].add(token)

    for number in model.continue_texts(texts, sampling_of(config), add):
        completion = found.pop(number)
        row = {
            "sample": keys[number][1],
            "seed": seeds[number],
            "completion": completion.text + completion.stream.end(),
            "finish_reason": "stop" if completion.has_stopped else "length",
            "tokens": completion.num_tokens,
        }
        begun.add(keys[number], row)
        yield number


def _rows(
    prompts: Sequence[Prompt], done: Mapping[Key, Mapping[str, Any]], num_samples: int
) -> Iterator[Mapping[str, Any]]:
    for number, prompt in enumerate(prompts):
        if prompt.error is not None:
            yield {"line": prompt.line, "error": prompt.error, "row": prompt.row}
            continue
        for sample in range(num_samples):
            yield {**prompt.row, "line": prompt.line, **done[number, sample]}


def _json_line(row: Mapping[str, Any]) -> bytes:
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # half of a character, which JSON can spell and UTF-8 cannot
        return f"{json.dumps(row)}\n".encode()


def _name_bad(source: Path, prompts: Sequence[Prompt], log: Callable[[str], None]) -> None:
    bad = [prompt for prompt in prompts if prompt.error is not None]
    for prompt in bad[:MOST_NAMED]:
        log(f"{source}, line {prompt.line}: {prompt.error}")
    if bad:
        more = f" ({len(bad) - MOST_NAMED:,} more are not named here)" if len(bad) > MOST_NAMED else ""
        log(f"{len(bad):,} of {len(prompts):,} rows cannot be continued{more}; the output names the error of each")
