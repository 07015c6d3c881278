"""A conversation with a model, kept within its context."""

from collections.abc import Callable, Generator, Iterator

from jaxlm.common.sampling import Sampling, check_prompt
from mlxlm.chat.prompt_cache import PromptCache
from mlxlm.model.language_model import LanguageModel
from shared_tokenizer.chat.formats import ChatFormat
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, parse_messages, stop_ids
from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# A quarter of the context is kept free for an answer, or max_tokens where that is less.
SHARE_FOR_ANSWER = 4


class Conversation:
    """A system message, if there is one, and turns: the user's and the model's in turn.

    `say` is told what was dropped to make room, and why an answer ended early.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        sampling: Sampling,
        say: Callable[[str], None],
    ):
        self._model, self._tokenizer, self._format = model, tokenizer, chat_format
        self._sampling, self._say = sampling, say
        self._stop_ids = frozenset(stop_ids(tokenizer, chat_format))
        self._cache = PromptCache(model)
        self._system: tuple[Message, ...] = ()
        self.turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """The system message and the turns."""
        return [*self._system, *self.turns]

    def set_system(self, content: str) -> None:
        """Put another system message before all turns, or none where it is empty. Raises ValueError if not Unicode."""
        self._system = _parsed("system", content) if content else ()

    def reset(self) -> None:
        """Forget all turns."""
        self.turns = []

    def ask(self, content: str) -> Generator[str, None, None]:
        """The answer to a message, in pieces as they come.

        Where it is closed or interrupted, what was answered so far stays in the conversation. A message without any
        answer does not. Raises ValueError where a message is not Unicode, or leaves no room for an answer.
        """
        self.turns += _parsed("user", content)
        reply = ReplyStream(self._tokenizer, self._format)
        try:
            yield from self._answer(self._fitting_prompt(), reply)
        finally:
            if reply.content.strip():
                self.turns.append(Message("assistant", reply.content))
            else:
                self.turns.pop()

    def _answer(self, prompt: list[int], reply: ReplyStream) -> Iterator[str]:
        room, most = self._model.config.max_seq_len - len(prompt), self._sampling.max_tokens
        for token in self._cache.generate(prompt, self._sampling, min(most, room)):
            if token in self._stop_ids:
                if not reply.content.strip():
                    self._say("the model answered nothing; your message is not kept")
                return
            yield reply.add(token)
        self._say(f"cut here: max_tokens {most}" if most <= room else "cut here: the context is full")

    def _fitting_prompt(self) -> list[int]:
        """Ids of the conversation, without as many of its oldest turns as it takes to leave room for an answer."""
        config = self._model.config
        longest = config.max_seq_len - min(self._sampling.max_tokens, config.max_seq_len // SHARE_FOR_ANSWER)
        turns = self.turns
        while len(prompt := self._encoded(turns)) > longest:
            if len(turns) == 1:
                raise ValueError(
                    f"message: found {len(prompt)} tokens with what stands around it, expected at most {longest} of "
                    f"the context of {config.max_seq_len}; shorten it or the system prompt"
                )
            turns = turns[2:]
        check_prompt(prompt, config.vocab_size, config.max_seq_len)
        if dropped := len(self.turns) - len(turns):
            self.turns = turns
            self._say(f"the context of {config.max_seq_len} tokens is full: the oldest {dropped} turns were dropped")
        return prompt

    def _encoded(self, turns: list[Message]) -> list[int]:
        return encode_generation_prompt([*self._system, *turns], self._tokenizer, self._format)


def _parsed(role: str, content: str) -> tuple[Message, ...]:
    return parse_messages([{"role": role, "content": content}], needs_reply=False)
