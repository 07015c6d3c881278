"""Generation for one conversation that computes only the new tokens of each prompt."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from jaxlm.common.sampling import Sampling
from mlxlm.generate import sample_tokens
from mlxlm.model.language_model import LanguageModel
from mlxlm.sampling import Sampler, make_sampler


class PromptCache:
    """The cache of a model for one conversation, with the token ids that it holds.

    If a prompt differs from these ids at some position, the keys and values after that position are dropped. A
    recurrent state cannot go back, so a model with MLGRU layers then computes the whole prompt again.
    """

    def __init__(self, model: LanguageModel):
        self._model = model
        self._sampler: Sampler | None = None
        self.clear()

    def clear(self) -> None:
        """Drop the cache."""
        self._cache = self._model.make_cache()
        self._cached_ids: list[int] = []

    def generate(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> Iterator[int]:
        """Yield at most `max_tokens` tokens that continue a prompt of at least one token.

        The seed begins the first text; the random state goes on from one text to the next.
        """
        self._sampler = self._sampler or make_sampler(sampling, self._model.config.vocab_size)
        kept = self._keep_prefix(prompt)
        new = prompt[kept:]
        try:
            self._cached_ids += new
            steps = sample_tokens(
                self._model, new, sampling, max_tokens, self._cache, earlier=prompt[:kept], sampler=self._sampler
            )
            for token in steps:
                self._cached_ids.append(
                    token
                )  # the generator runs one token ahead, so the cache holds this one already
                yield token
        except KeyboardInterrupt:
            self.clear()  # the interrupt may have come between two layers
            raise

    def _keep_prefix(self, prompt: Sequence[int]) -> int:
        """Cut the cache to a prefix of the prompt, without its last token, and return the prefix's length."""
        pairs = zip(self._cached_ids, prompt[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if surplus := len(self._cached_ids) - common:
            if can_trim_prompt_cache(self._cache):
                trim_prompt_cache(self._cache, surplus)
                del self._cached_ids[common:]
            else:
                self.clear()
        return len(self._cached_ids)
