"""The settings of text generation, the same for JAX and MLX."""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared_tokenizer.settings import check_bounds, check_unchanged, setting

LARGEST_SEED = 2**31 - 1
# Beyond these float32 cannot hold the divided logits, or a probability.
SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-6, 1e3
SMALLEST_TOP_P = 1e-6
SMALLEST_PENALTY, LARGEST_PENALTY = 1e-2, 10.0
# Tokens back that the repetition penalty looks.
PENALTY_WINDOW = 64
# Texts that are generated together, unless a command is told another number.
MOST_TEXTS = 32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The choice of the next token. Raises ValueError on a value out of range."""

    max_tokens: int = setting(128, at_least=1)
    """Tokens to generate, at most."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more varied."""
    top_k: int = setting(0, at_least=0)
    """Choose among this many likeliest tokens; 0 does not limit."""
    top_p: float = setting(1.0, at_least=SMALLEST_TOP_P, at_most=1)
    """Choose among the likeliest tokens that together reach this probability; 1 does not limit."""
    min_p: float = setting(0.0, at_least=0, at_most=1)
    """Leave out tokens less likely than this fraction of the likeliest; 0 does not limit."""
    repetition_penalty: float = setting(1.0, at_least=SMALLEST_PENALTY, at_most=LARGEST_PENALTY)
    """Divide the positive logits of the last 64 tokens by this, multiply their negative ones; 1 changes nothing."""
    seed: int = setting(0, at_least=0, at_most=LARGEST_SEED)
    """Seed of the random choice."""

    def __post_init__(self) -> None:
        low, high = SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE
        if not (self.temperature == 0 or low <= self.temperature <= high):
            raise ValueError(f"temperature: found {self.temperature}, expected 0, or {low:g} to {high:g}")
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling):
    """A model, a prompt, and the choice of tokens. Its defaults suit a base model."""

    temperature: float = 0.8
    """0 takes the likeliest token; higher is more varied."""
    top_p: float = setting(0.95, at_least=SMALLEST_TOP_P, at_most=1)
    """Choose among the likeliest tokens that together reach this probability; 1 does not limit."""
    model: str = setting(is_model=True)
    """Artifact, transformers or MLX directory or GGUF file; JAX opens a run directory too."""
    prompt: str = ""
    """Start of the text."""
    prompts: str | None = setting(None, group="many prompts")
    """File of prompts, instead of one: jsonl with a prompt (a text) or messages
    (a chat) in each line, or a .txt with a prompt per line."""
    num_samples: int = setting(1, at_least=1, group="many prompts")
    """Texts of each prompt of the file, each with a seed of its own."""
    output: str | None = setting(None, group="many prompts")
    """File for the texts of a file of prompts, as jsonl. A command that was
    killed goes on where it was."""
    batch_size: int = setting(MOST_TEXTS, at_least=1, group="many prompts")
    """Texts of a file that are generated together, at most."""
    best_of: int | None = setting(None, at_least=2, group="choice")
    """Sample so many answers and write the one that the verifier rewards most."""
    verifier: str | None = setting(None, group="choice")
    """best_of: function (prompt, answer, row) -> reward of your own, as
    path/to/file.py:function."""
    majority: int | None = setting(None, at_least=2, group="choice")
    """Sample so many answers and write the most frequent one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice()
        if self.prompts is None:
            names = ("num_samples", "output", "batch_size")
            check_unchanged(self, names, "on a single prompt; give a file by --prompts")
            return
        if self.prompt:
            raise ValueError("prompt: found it and prompts, expected one of them")
        if self.output is None:
            raise ValueError("output: found none, expected a file for the texts of prompts, --output FILE.jsonl")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"num_samples: found {self.num_samples} at temperature 0, where all are the same; expected 1, or a "
                "temperature"
            )

    @property
    def chooses(self) -> bool:
        """True where one answer is chosen among several."""
        return self.best_of is not None or self.majority is not None

    def _check_choice(self) -> None:
        if (self.best_of is None) != (self.verifier is None):
            found, missing = ("best_of", "verifier") if self.verifier is None else ("verifier", "best_of")
            raise ValueError(f"{missing}: found none with {found}, expected both")
        if self.best_of is not None and self.majority is not None:
            raise ValueError("best_of, majority: found both, expected one of the two")
        if self.chooses and self.prompts is not None:
            raise ValueError("best_of, majority: have no effect on a file of prompts; use --num_samples there")
        if self.chooses and self.temperature == 0:
            raise ValueError("best_of, majority: found temperature 0, where all answers are the same")


def sampling_of(settings: Sampling) -> Sampling:
    """Return the choice of tokens alone, of settings that have more."""
    return Sampling(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Sampling)})


def stop_set(stop: int | Collection[int] | None) -> frozenset[int]:
    """Return the ids that end a generation: of one, several, or none."""
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)


def check_prompt(prompt: Sequence[int], vocab_size: int, max_seq_len: int) -> None:
    """Raise ValueError where a prompt of token ids cannot be continued."""
    if len(prompt) == 0:
        raise ValueError("prompt: found no token, expected at least one")
    if len(prompt) >= max_seq_len:
        raise ValueError(
            f"prompt: found {len(prompt)} tokens, expected fewer than the model's context of {max_seq_len}"
        )
    if not all(0 <= token < vocab_size for token in prompt):
        raise ValueError(f"prompt: found a token id outside 0..{vocab_size - 1}; it belongs to another tokenizer")


def print_speed(times: Sequence[float]) -> None:
    """Print the tokens per second of a generation, on stderr. `times` are the moments in seconds when they came."""
    if len(times) > 1:
        # The first token waits for the prompt, and for the compiler.
        speed = (len(times) - 1) / (times[-1] - times[0])
        sys.stderr.write(f"{len(times)} tokens, {speed:,.1f} tokens/s after the first\n")
