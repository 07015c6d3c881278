"""The settings of the command `mlxlm chat`."""

from dataclasses import dataclass

from jaxlm.common.sampling import Sampling
from shared_tokenizer.chat.formats import ChatFormatChoice
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class ChatConfig(Sampling):
    """The model to talk with, and the choice of its tokens."""

    model: str = setting(is_model=True)
    """Artifact, transformers or MLX directory or GGUF file, of a model that was trained on chats."""
    adapter_path: str | None = None
    """Directory of adapters to add to the model."""
    system: str = ""
    """System prompt."""
    chat_format: ChatFormatChoice = "auto"
    """Chat format that the model was trained with; auto is that of the chat template of the adapters or the model."""
    max_tokens: int = 512
    """Tokens of an answer, at most."""
