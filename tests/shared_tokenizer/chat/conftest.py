import pytest
import transformers

from shared_tokenizer.chat.formats import named_chat_format
from shared_tokenizer.chat.template import write_chat_template
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.shared_tokenizer.chat.chat_tokenizers import (
    HEADERS,
    PAIRS,
    PATTERNS,
    TRAINED_ON,
    TURNS_OF_GEMMA,
    save_byte_level,
)


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    """Return the tokenizers of this project and the same ones opened by transformers, by kind and format."""
    ours: dict[str, Tokenizer] = {
        kind: train_tokenizer(TRAINED_ON, 600, model_type=kind, special_tokens=(*HEADERS, *TURNS_OF_GEMMA))
        for kind in ("bpe", "unigram")
    }
    for kind, pattern in PATTERNS.items():
        directory = tmp_path_factory.mktemp("tokenizer")
        save_byte_level(directory, pattern)
        ours[kind] = load_tokenizer(directory)
    opened = {}
    for kind, name in PAIRS:
        directory = tmp_path_factory.mktemp("chat")
        ours[kind].save(directory)
        write_chat_template(directory, named_chat_format(name), ours[kind])
        opened[kind, name] = ours[kind], transformers.AutoTokenizer.from_pretrained(directory)
    return opened
