"""A conversation with a model, within the length of the model's context."""

from collections.abc import Callable, Generator, Iterator

from jaxlm.common.sampling import Sampling, check_prompt
from mlxlm.chat.prompt_cache import PromptCache
from mlxlm.model.language_model import LanguageModel
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, stop_ids
from shared_tokenizer.chat.parse import parse_messages
from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# One part in this many of the context stays free for the answer, or max_tokens if that is less.
SHARE_FOR_ANSWER = 4


class Conversation:
    """An optional system message, and turns of the user and the model.

    `note` receives a line about each turn that was dropped to make room, and about each answer that ended early.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        sampling: Sampling,
        note: Callable[[str], None],
    ):
        self._model, self._tokenizer, self._format = model, tokenizer, chat_format
        self._sampling, self._note = sampling, note
        self._stop_ids = frozenset(stop_ids(tokenizer, chat_format))
        self._cache = PromptCache(model)
        self._system: tuple[Message, ...] = ()
        self.turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """The system message and the turns."""
        return [*self._system, *self.turns]

    def set_system(self, content: str) -> None:
        """Replace the system message; an empty text removes it. Raises ValueError if it is not valid Unicode."""
        self._system = _parsed("system", content) if content else ()

    def reset(self) -> None:
        """Remove all turns."""
        self.turns = []

    def ask(self, content: str) -> Generator[str, None, None]:
        """Yield the answer to a message in pieces, as they are generated.

        If the generator is closed or interrupted, the conversation keeps the answer so far. It does not keep a message
        without any answer. Raises ValueError if the message is not valid Unicode, or leaves no room for an answer.
        """
        if self.turns and self.turns[-1].role == "user":  # an interrupt came before its end was noted
            self.turns.pop()
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
                    self._note("the model gave no answer; your message is not kept")
                return
            yield reply.add(token)
        self._note(f"cut here: max_tokens {most}" if most <= room else "cut here: the context is full")

    def _fitting_prompt(self) -> list[int]:
        """Return the ids of the conversation, after dropping its oldest turns until there is room for an answer."""
        config = self._model.config
        longest = config.max_seq_len - min(self._sampling.max_tokens, config.max_seq_len // SHARE_FOR_ANSWER)
        turns = self.turns
        while len(prompt := self._encoded(turns)) > longest:
            if len(turns) == 1:
                raise ValueError(
                    f"message: found {len(prompt)} tokens with the system prompt and the chat format, expected at most "
                    f"{longest} of the context of {config.max_seq_len}; shorten the message or the system prompt"
                )
            turns = turns[2:]
        check_prompt(prompt, config.vocab_size, config.max_seq_len)
        if dropped := len(self.turns) - len(turns):
            self.turns = turns
            self._note(f"the context of {config.max_seq_len} tokens is full: the oldest {dropped} turns were dropped")
        return prompt

    def _encoded(self, turns: list[Message]) -> list[int]:
        return encode_generation_prompt([*self._system, *turns], self._tokenizer, self._format)


def _parsed(role: str, content: str) -> tuple[Message, ...]:
    return parse_messages([{"role": role, "content": content}], needs_reply=False)
