"""One answer out of several samples: the one that a verifier rewards most, or the most frequent one."""

import sys

from jaxlm.common.generation.completions import CompletingModel, Completion, seed_of
from jaxlm.common.generation.texts import Text
from jaxlm.common.rewards.estimates import majority
from jaxlm.common.rewards.open_task import VERIFIER_SECONDS, open_verifier
from jaxlm.common.rewards.task import Row, Verifier, grade
from jaxlm.common.sampling import GenerateConfig, check_prompt, sampling_of
from shared_tokenizer.tokenizers.tokenizer import TextStream


def choose_answer(config: GenerateConfig, model: CompletingModel) -> str:
    """Return the answer to the prompt that is chosen among `best_of` or `majority` samples, and tell why on stderr.

    Of equal ones the first is chosen. Raises ValueError where the prompt cannot be continued, and where the verifier
    cannot be used or fails at every answer.
    """
    row: Row = {"prompt": config.prompt}
    verifier = None if config.verifier is None else open_verifier(config.verifier, VERIFIER_SECONDS, [row])
    answers = sample_answers(config, model, config.best_of or config.majority or 1)
    index, why = _best(verifier, row, answers) if verifier is not None else _most_frequent(answers)
    sys.stderr.write(f"{why}\n")
    return answers[index]


def sample_answers(config: GenerateConfig, model: CompletingModel, count: int) -> list[str]:
    """Return so many answers to the prompt, each with a seed of its own."""
    prompt = model.tokenizer.encode_to_continue(config.prompt)
    check_prompt(prompt, model.vocab_size, model.max_seq_len)
    texts = [Text(prompt, config.max_tokens, seed_of(config.seed, 0, sample)) for sample in range(count)]
    found = [Completion(model.ends, TextStream(model.tokenizer)) for _ in texts]
    for _ in model.continue_texts(texts, sampling_of(config), lambda number, token: found[number].add(token)):
        pass
    return [each.text + each.stream.end() for each in found]


def _best(verifier: Verifier, row: Row, answers: list[str]) -> tuple[int, str]:
    grades = grade(verifier, [row] * len(answers), answers)
    index = int(grades.rewards.argmax())
    why = f"best of {len(answers)}: reward {grades.rewards[index]:g}, the mean is {grades.rewards.mean():.3g}"
    if grades.faults:
        why += f"; the verifier failed at {grades.faults.total()}: {grades.first_fault}"
    return index, why


def _most_frequent(answers: list[str]) -> tuple[int, str]:
    index = majority(answers)
    votes = sum(answer.strip() == answers[index].strip() for answer in answers)
    return index, f"majority: {votes} of {len(answers)} answers"
