"""Models of this project as models of lm-evaluation-harness, and its tasks run on them. It needs the extra `eval`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxlm.common.evaluation.continuations import TokenPair, encode_pair, loglikelihoods
from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.scoring import Track
from jaxlm.common.generation.texts import Text
from jaxlm.common.help import nearest
from jaxlm.common.sampling import Sampling
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, encode_text_part, stop_ids
from shared_tokenizer.tokenizers.tokenizer import TextStream, Tokenizer

MAX_TOKENS = 256
# Settings of a generation that `Sampling` has too; `do_sample` chooses whether the temperature counts.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def _arguments(request: Instance) -> tuple[Any, ...]:
    return request.args


class HarnessModel(LM):
    """An evaluated model behind the interface of the harness.

    Special tokens that are spelled in a task stay text, as everywhere in this project; transformers parses them.
    """

    def __init__(self, model: EvaluatedModel, *, log: Callable[[str], None] = print, track: Track = iter):
        super().__init__()
        self._model, self._log, self._track = model, log, track
        # The ids of the conversations that were written as a text, by this text.
        self._chats = dict[str, list[int]]()

    @property
    def tokenizer_name(self) -> str:
        """Return what identifies the tokenizer and the chat format, for the harness's cache of requests."""
        return f"{self._model.tokenizer.fingerprint}-{self.chat_template()}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the name of the chat format, empty where there is none."""
        return "" if self._model.chat_format is None else self._model.chat_format.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as a text, under which its ids are kept.

        A last message of the assistant is the start of its answer. Raises ValueError where the format cannot write it.
        """
        model = self._model
        if model.chat_format is None:
            raise ValueError(f"{model.name}: found no chat format, expected one to write tasks as conversations")
        messages: list[Any] = [Message(turn["role"], turn["content"]) for turn in chat_history]  # pyright: ignore[reportArgumentType]
        begun = messages.pop().content if messages[-1].role == "assistant" else ""
        ids = encode_generation_prompt(messages, model.tokenizer, model.chat_format)
        ids += encode_text_part(begun, model.tokenizer) if begun else []
        text = _readable(ids, model.tokenizer)
        if self._chats.setdefault(text, ids) != ids:
            raise ValueError(f"chats: found two conversations that read {text[:60]!r}; a message spells special tokens")
        return text

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and if greedy decoding would write it."""
        return self._scored([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of each text, in windows of the model's context.

        The first token follows the begin token, which is not scored itself. The harness's own `hf` model lets a
        tokenizer add its begin token after the prefix token, and scores it; with `add_bos_token=False` it does as here.
        """
        tokenizer, pairs, owners = self._model.tokenizer, list[TokenPair](), list[int]()
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                tokenizer.encode(request.args[0]),
                prefix_token=tokenizer.encode_to_continue("")[-1],
                max_seq_len=self._model.max_seq_len,
                context_len=1,
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (nats, _) in zip(owners, self._scored(pairs), strict=True):
            totals[number] += nats
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the answer to each context, up to the first of its stop texts, without it."""
        groups = dict[str, list[int]]()
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(_arguments(request)[1], sort_keys=True), []).append(number)
        answers = [""] * len(requests)
        ended = chain.from_iterable(self._answers(requests, numbers, answers) for numbers in groups.values())
        for _ in self._track([[number] for number in range(len(requests))]):
            next(ended)
        return answers

    def _pair(self, context: str, continuation: str) -> TokenPair:
        """Return the ids of both. An answer in a conversation is encoded alone, as where it is learned."""
        if context in self._chats:
            return list(self._chats[context]), encode_text_part(continuation, self._model.tokenizer)
        return encode_pair(context, continuation, self._model.tokenizer)

    def _scored(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        found = loglikelihoods(self._model, pairs, log=self._log, track=self._track)
        return [(each.nats, each.is_greedy) for each in found]

    def _answers(self, requests: Sequence[Instance], numbers: Sequence[int], answers: list[str]) -> Iterator[int]:
        """Put the answers to requests of equal settings into `answers`, and yield the number of each that has ended."""
        model, tokenizer = self._model, self._model.tokenizer
        sampling, until = _sampling(_arguments(requests[numbers[0]])[1], model.max_seq_len)
        room = model.max_seq_len - sampling.max_tokens
        contexts = [_arguments(requests[number])[0] for number in numbers]
        prompts = [self._chats.get(text) or tokenizer.encode_to_continue(text) for text in contexts]
        if num_cut := sum(len(prompt) > room for prompt in prompts):
            self._log(f"{num_cut} of {len(prompts)} prompts are longer than {room} tokens: their start is left out")
        stops = frozenset(tokenizer.stop_ids)
        if model.chat_format is not None and contexts[0] in self._chats:
            stops = frozenset(stop_ids(tokenizer, model.chat_format))
        streams = [TextStream(tokenizer) for _ in prompts]

        def add(index: int, token: int) -> bool:
            if token not in stops:
                answers[numbers[index]] += streams[index].add(token)
            return token in stops or any(stop in answers[numbers[index]] for stop in until)

        texts = [Text(prompt[-room:], sampling.max_tokens, sampling.seed) for prompt in prompts]
        for index in model.continue_texts(texts, sampling, add):
            number = numbers[index]
            answers[number] = _before(answers[number] + streams[index].end(), until)
            yield number


def _sampling(settings: Mapping[str, Any], max_seq_len: int) -> tuple[Sampling, list[str]]:
    """Return the choice of tokens and the stop texts of a task. At most half of the model's context is generated."""
    known: dict[str, Any] = {**normalize_gen_kwargs(dict(settings), MAX_TOKENS)}
    until = [stop for stop in known.pop("until") if stop]
    max_tokens, samples = min(known.pop("max_gen_toks"), max_seq_len // 2), known.pop("do_sample")
    chosen: dict[str, Any] = {name: known.pop(name) for name in _SAMPLING if name in known}
    if known:
        raise ValueError(
            f"generation_kwargs: found {', '.join(known)}, expected do_sample, until, max_gen_toks, "
            f"{', '.join(_SAMPLING)}; leave this task out"
        )
    if not samples:
        chosen["temperature"] = 0.0
    return Sampling(max_tokens=max_tokens, **chosen), until


def _before(text: str, stops: Iterable[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def _readable(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return ids as a text in which special tokens are spelled."""
    spelled = {token: text.encode() for text, token in tokenizer.special_tokens.items()}
    return b"".join(spelled.get(token, tokenizer.pieces[token]) for token in ids).decode("utf-8", "replace")


def load_harness_tasks(names: Sequence[str], task_dir: str | None = None) -> list[Any]:
    """Return tasks and groups of the harness, with their data.

    Those of `task_dir` need no network. Raises ValueError where a name is unknown or the data cannot be read.
    """
    if task_dir is not None and not Path(task_dir).is_dir():
        raise ValueError(f"task_dir: found no directory {task_dir}, expected one with YAML files of tasks")
    manager = None if task_dir is None else TaskManager(include_path=task_dir, include_defaults=False)
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=task_dir)  # reads thousands of files
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        near = nearest(unknown[0], manager.all_tasks)
        raise ValueError(
            f"tasks: found no task {', '.join(unknown)}{near or '; expected names that `lm_eval ls tasks` lists'}"
        )
    return [task for name in names for task in _load(name, manager)]


def _load(name: str, manager: TaskManager) -> list[Any]:
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever the task's own code and the library of its data raise
        raise ValueError(
            f"task {name}: its data cannot be read: {error}; download it where there is a network, or give task_dir a "
            "task with local files"
        ) from error
    return list((loaded.get("groups") or {}).values())[:1] or list(loaded["tasks"].values())


def run_harness_tasks(
    model: EvaluatedModel,
    tasks: list[Any],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    log: Callable[[str], None] = print,
    track: Track = iter,
) -> dict[str, Any]:
    """Return the results in the harness's own form, with its samples.

    `limit` is the number of rows of each task. A model with a chat format gets tasks as conversations.
    """
    found = simple_evaluate(
        model=HarnessModel(model, log=log, track=track),
        tasks=tasks,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=model.chat_format is not None,
        fewshot_as_multiturn=model.chat_format is not None,
        torch_random_seed=None,  # pyright: ignore[reportArgumentType]  # a seed would import torch
        task_manager=TaskManager(include_defaults=False),
    )
    results: dict[str, Any] = {**(found or {})}
    return results | {"config": {**results["config"], "model": model.name}}
