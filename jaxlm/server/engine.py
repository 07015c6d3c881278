"""The engine of a JAX model: the requests that wait are generated together, one batch after another."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from jaxlm.common.generation.texts import Text
from jaxlm.common.openai_api.errors import ApiError, internal_error, log
from jaxlm.common.openai_api.tasks import Finish, Piece, PromptScores, Task, TokenScore
from jaxlm.common.sampling import Sampling
from jaxlm.common.serving.engine import Engine, Generation
from jaxlm.continue_texts import continue_texts
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import Params, ternarize
from jaxlm.score import score


class JaxEngine(Engine):
    """A thread that generates up to `max_batch` texts together. A request that comes later waits for their end.

    Only requests of equal sampling settings share a batch; each has a seed and a length of its own.
    """

    def __init__(self, model: LanguageModel, params: Params, *, max_queue: int, max_batch: int, timeout_s: float):
        super().__init__(max_queue=max_queue, max_running=max_batch, timeout_s=timeout_s)
        self._model, self._params = model, ternarize(params, model.config)

    def check(self, task: Task) -> None:
        """Raise ApiError (400) that names a setting which only the MLX server has."""
        penalties = task.penalties
        absent = {
            "presence_penalty": penalties.presence,
            "frequency_penalty": penalties.frequency,
            "logit_bias": task.logit_bias,
        }
        for name, value in absent.items():
            if value:
                message = f"{name}: found a setting that the JAX server does not have; leave it out"
                raise ApiError(400, message, param=name)

    def step(self) -> None:
        """Generate all texts that wait, as far as they fit into a batch, to their ends."""
        taken = list[Generation]()
        while (generation := self.take_waiting()) is not None:
            taken.append(generation)
        scored = [generation for generation in taken if generation.task.scores_prompt]
        if scored:
            self._score_guarded(scored)
        left = [generation for generation in taken if generation in self.running]
        for generation in left:
            if not generation.task.generates:
                self.finish(generation, Finish("length", len(generation.task.prompt), 0, 0))
        to_generate = sorted((generation for generation in left if generation.task.generates), key=_batch_key)
        for _, batch in groupby(to_generate, key=_batch_key):
            self._generate_guarded(list(batch))

    def _score_guarded(self, generations: Sequence[Generation]) -> None:
        """Score prompts. After a fault each tries alone, so that only what is at fault fails."""
        try:
            self._score_prompts(generations)
        except Exception:
            log.exception("the scores of prompts failed")
            if len(generations) == 1:
                self.finish(generations[0], internal_error())
                return
            for generation in generations:
                self._score_guarded([generation])

    def _generate_guarded(self, batch: list[Generation]) -> None:
        """Generate the texts of a batch; a fault fails those that have not ended, and no other batch."""
        try:
            self._generate(batch)
        except Exception:
            log.exception("a batch failed")
            for generation in batch:
                if generation in self.running:
                    self.finish(generation, internal_error())

    def reset(self) -> None:
        """Nothing lives from one batch to the next."""

    def _score_prompts(self, generations: Sequence[Generation]) -> None:
        prompts = [generation.task.prompt for generation in generations]
        for generation, tokens in zip(generations, self._scores(generations, prompts, [1] * len(prompts)), strict=True):
            generation.emit(PromptScores(tuple(tokens)))

    def _scores(
        self, generations: Sequence[Generation], rows: Sequence[list[int]], contexts: Sequence[int]
    ) -> list[list[TokenScore]]:
        """Return the scores of each row's tokens after its context, with the likeliest ones that its task asks for."""
        counts = [generation.task.logprobs or 0 for generation in generations]
        top = min(max(counts), self._model.config.vocab_size)
        found = []
        for row, context, count, scores in zip(
            rows, contexts, counts, score(self._model, self._params, rows, contexts, top=top), strict=True
        ):
            tokens = []
            for at, token in enumerate(row[context:]):
                ids, logprobs = scores.top_ids[at, :count].tolist(), scores.top_logprobs[at, :count].tolist()
                likeliest = tuple(zip(ids, logprobs, strict=True))
                tokens.append(TokenScore(token, float(scores.logprobs[at]), likeliest))
            found.append(tokens)
        return found

    def _generate(self, batch: list[Generation]) -> None:
        """Generate the texts of a batch; those whose tokens are scored come when the batch has ended."""
        texts = [_Text(generation) for generation in batch]
        asked = [Text(text.task.prompt, text.task.sampling.max_tokens, text.task.sampling.seed) for text in texts]

        def add(number: int, token: int) -> bool:
            return self.is_stopping or batch[number].cancelled or texts[number].add(token)

        sampling, allowed = batch[0].task.sampling, self._allowed(batch)
        for _ in continue_texts(
            self._model, self._params, asked, sampling, add, batch_size=len(batch), allowed=allowed
        ):
            pass
        scored = [text for text in texts if text.task.logprobs is not None and not text.has_left]
        if scored:
            rows = [[*text.task.prompt, *text.tokens] for text in scored]
            contexts = [len(text.task.prompt) for text in scored]
            for text, scores in zip(
                scored, self._scores([text.generation for text in scored], rows, contexts), strict=True
            ):
                text.emit_scored(scores)
        for text in texts:
            self.finish(text.generation, None if text.generation.cancelled else text.error or text.end())

    def _allowed(self, batch: Sequence[Generation]) -> Callable[[int], np.ndarray] | None:
        """Return the tokens that each text may go on with, by its number; None where all may with any."""
        constraints = [generation.task.constraint for generation in batch]
        if not any(constraints):
            return None
        every = np.ones(self._model.config.vocab_size, bool)
        return lambda number: every if (found := constraints[number]) is None else found.allowed()


class _Text:
    """A text of a batch."""

    def __init__(self, generation: Generation):
        self.generation, self.task = generation, generation.task
        self.tokens: list[int] = []
        self.error: ApiError | None = None
        """A grammar that the text cannot follow any further."""
        self._stops = False

    @property
    def has_left(self) -> bool:
        """True if no client waits for a text any more."""
        return self.generation.cancelled or self.error is not None

    def add(self, token: int) -> bool:
        """Add a token, and emit its text unless it is to be scored first. Returns True at the end of the text."""
        task = self.task
        if task.constraint is not None:
            try:
                task.check_constraint()
            except ApiError as error:
                self.error = error
                return True
            task.constraint.accept(token)
        self.tokens.append(token)
        self.generation.num_tokens = len(self.tokens)
        is_stop = token in task.stop_ids
        piece = "" if is_stop or task.logprobs is not None else task.reply.add(token)
        self._stops = is_stop or task.reply.stopped
        has_ended = self._stops or len(self.tokens) >= task.sampling.max_tokens
        if has_ended and task.logprobs is None:
            piece += task.reply.end()
        if piece:
            self.generation.emit(Piece(piece))
        return has_ended

    def emit_scored(self, scores: Sequence[TokenScore]) -> None:
        """Emit the text with the scores of its tokens, up to a stop sequence."""
        for each in scores:
            is_stop = each.token in self.task.stop_ids
            self.generation.emit(Piece("" if is_stop else self.task.reply.add(each.token), (each,)))
            if self.task.reply.stopped:
                self._stops = True
                self.tokens = self.tokens[: self.tokens.index(each.token) + 1]
                return
        if rest := self.task.reply.end():
            self.generation.emit(Piece(rest))

    def end(self) -> Finish:
        """Return the end of the text."""
        return Finish("stop" if self._stops else "length", len(self.task.prompt), len(self.tokens), 0)


def _batch_key(generation: Generation) -> tuple[object, ...]:
    """Return what the texts of a batch have in common: their settings, but for the length and the seed."""
    sampling: Sampling = generation.task.sampling
    fields = dataclasses.asdict(sampling) | {"max_tokens": 1, "seed": 0}
    if sampling.temperature == 0:
        fields |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return tuple(fields.items())
