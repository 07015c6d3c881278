"""Generation that goes on from what a model has seen: of a conversation only what is new is computed."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from jaxlm.common.sampling import Sampling
from mlxlm.generate import sample_tokens
from mlxlm.model.language_model import LanguageModel


class PromptCache:
    """The cache of a model for one conversation.

    A prompt that leaves what was seen before goes on from where they part if all layers are attention. A recurrent
    state cannot go back, so then the whole prompt is computed.
    """

    def __init__(self, model: LanguageModel):
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._cache = self._model.make_cache()
        self._seen: list[int] = []

    def generate(self, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> Iterator[int]:
        """At most `max_tokens` tokens that continue a prompt of at least one."""
        new = prompt[self._go_back_to(prompt) :]
        try:
            self._seen += new
            for token in sample_tokens(self._model, new, sampling, max_tokens, self._cache):
                self._seen.append(token)  # the generator has run it already, to be a token ahead
                yield token
        except KeyboardInterrupt:
            self.clear()  # some layers may have seen a token that others have not
            raise

    def _go_back_to(self, prompt: Sequence[int]) -> int:
        """Bring the cache to a beginning of the prompt, not all of it; returns how many tokens that is."""
        pairs = zip(self._seen, prompt[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if surplus := len(self._seen) - common:
            if can_trim_prompt_cache(self._cache):
                trim_prompt_cache(self._cache, surplus)
                del self._seen[common:]
            else:
                self.clear()
        return len(self._seen)
