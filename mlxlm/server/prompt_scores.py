"""The scores of prompts, several in one prefill."""

from collections.abc import Sequence

from jaxlm.common.openai_api.tasks import Finish, Piece, PromptScores, Task, TokenScore
from jaxlm.common.serving.engine import Engine, Generation
from mlxlm.model.language_model import LanguageModel
from mlxlm.score import score


def score_prompts(model: LanguageModel, engine: Engine, generations: Sequence[Generation]) -> list[Generation]:
    """Score the prompts of generations, and return those that still have a text to generate.

    A single token that is the likeliest one is known from the scores, so the requests of lm-evaluation-harness end
    here.
    """
    left = list[Generation]()
    if not generations:
        return left
    tasks = [generation.task for generation in generations]
    top = max(1, *(task.logprobs or 0 for task in tasks))
    found = score(model, [task.prompt for task in tasks], [1] * len(tasks), top=min(top, model.config.vocab_size))
    for generation, task, scores in zip(generations, tasks, found, strict=True):
        places = [
            tuple(zip(ids[: task.logprobs or 0].tolist(), logprobs[: task.logprobs or 0].tolist(), strict=True))
            for ids, logprobs in zip(scores.top_ids, scores.top_logprobs, strict=True)
        ]
        tokens = zip(task.prompt[1:], scores.logprobs.tolist(), places[:-1], strict=True)
        generation.emit(PromptScores(tuple(TokenScore(*token) for token in tokens)))
        if task.generates and not _is_known(task):
            left.append(generation)
            continue
        reason, count = "length", 0
        if task.generates:
            token, count = int(scores.top_ids[-1, 0]), 1
            generation.num_tokens = 1
            stops = token in task.stop_ids
            text = "" if stops else task.reply.add(token)
            text += task.reply.end()
            reason = "stop" if stops or task.reply.stopped else "length"
            score_of_token = TokenScore(token, float(scores.top_logprobs[-1, 0]), places[-1])
            generation.emit(Piece(text, () if task.logprobs is None else (score_of_token,)))
        engine.finish(generation, Finish(reason, len(task.prompt), count, 0))
    return left


def _is_known(task: Task) -> bool:
    """Return True if the text is the likeliest token alone."""
    is_plain = task.sampling.repetition_penalty == 1 and not (task.penalties.presence or task.penalties.frequency)
    is_free = is_plain and not task.logit_bias and task.constraint is None
    return is_free and task.sampling.max_tokens == 1 and task.sampling.temperature == 0
