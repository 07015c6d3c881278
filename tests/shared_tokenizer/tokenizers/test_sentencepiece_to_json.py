"""tokenizer.json made of a sentencepiece model: the same ids, or no file."""

import json
import random
from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.tokenizers.sentencepiece_model import parse_model
from shared_tokenizer.tokenizers.sentencepiece_to_json import to_tokenizer_json
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import ALPHABETS, CORPUS, imported_model

Pair = tuple[SentencePieceTokenizer, tokenizers.Tokenizer]
SPECIAL_TEXTS = ["<s></s><unk><pad>", "<|im_start|>a<|im_end|>", "<|endoftext|>", "<0x41><0xE2><0x96>", "a<s b>0x41"]


def repetitions() -> list[str]:
    """Return texts whose vocabulary is every combination of two letters and a space."""
    rng = random.Random(0)
    return ["".join(rng.choices("ab ", k=60)) for _ in range(200)]


MODELS: dict[str, Callable[[], SentencePieceTokenizer]] = {
    "bpe": lambda: train_tokenizer(CORPUS, 420),
    "bpe_of_repetitions": lambda: train_tokenizer(repetitions(), 500),
    "bpe_with_dummy_prefix": lambda: SentencePieceTokenizer(imported_model()),
    "unigram": lambda: train_tokenizer(CORPUS, 370, model_type="unigram"),
    "unigram_of_repetitions": lambda: train_tokenizer(repetitions(), 480, model_type="unigram"),
}


def json_of(ours: SentencePieceTokenizer) -> str | None:
    return to_tokenizer_json(ours._model, ours.bos_id)


@pytest.fixture(scope="module", params=MODELS)
def pair(request) -> Pair:
    ours = MODELS[request.param]()
    definition = json_of(ours)
    assert definition is not None
    theirs = tokenizers.Tokenizer.from_str(definition)
    theirs.encode_special_tokens = True
    return ours, theirs


def assert_same(pair: Pair, text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert theirs.encode(text).ids == ours.encode_prompt(text)
    assert theirs.decode(ids) == text


@given(text=st.one_of(st.text(), *(st.text(alphabet, max_size=80) for alphabet in ALPHABETS)))
@settings(max_examples=400)
def test_ids_are_the_same_for_any_text(pair, text):
    assert_same(pair, text)


@pytest.mark.parametrize("character", [" ", "a", "\n", "\t", "ab", "-", "\u4f60"])
def test_runs_are_cut_the_same_from_the_left(pair, character):
    for count in range(70):
        assert_same(pair, character * count)
        assert_same(pair, f"x{character * count}a")


def test_long_texts_are_cut_the_same(pair):
    rng = random.Random(1)
    text = "".join(
        rng.choice(["a", "b", "ab", " ", "  ", "return ", "x_axis", "\n", "\U0001f600"]) for _ in range(40000)
    )
    assert_same(pair, text)
    assert_same(pair, text.replace("\n", ""))


def test_special_tokens_and_bytes_written_in_the_text_stay_text(pair):
    for text in SPECIAL_TEXTS:
        assert_same(pair, text)


def test_special_tokens_have_their_ids(pair):
    ours, theirs = pair
    assert {token: theirs.token_to_id(token) for token in ours.special_tokens} == ours.special_tokens
    assert theirs.get_vocab_size() == ours.vocab_size


def test_without_a_begin_of_text_token_there_is_none_in_front():
    model = imported_model(bos_id=-1, add_dummy_prefix=False)
    definition = json_of(SentencePieceTokenizer(model))
    assert definition is not None
    assert json.loads(definition)["post_processor"] is None
    told = SentencePieceTokenizer(imported_model(), {"tokenizer_config.json": b'{"add_bos_token": false}'})
    assert told.bos_id is None
    assert json.loads(json_of(told) or "")["post_processor"] is None
    assert told.fingerprint != SentencePieceTokenizer(imported_model()).fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"treat_whitespace_as_suffix": True},
        {"byte_fallback": False},
        {"user_defined_symbols": ["<think>"]},
        {"model_type": "unigram"},  # scores as they were trained
        {"model_type": "word"},
        {"model_type": "char"},
    ],
    ids=str,
)
def test_what_cannot_be_the_same_is_not_written(options, tmp_path):
    ours = SentencePieceTokenizer(imported_model(**options))
    assert json_of(ours) is None
    ours.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.model", "tokenizer_config.json"}


def test_bpe_pieces_of_one_score_are_not_written():
    model = parse_model(imported_model())
    assert json_of(SentencePieceTokenizer(model.SerializeToString())) is not None
    first, second = [piece for piece in model.pieces if len(piece.piece) == 2 and piece.score < 0][:2]
    second.score = first.score
    assert json_of(SentencePieceTokenizer(model.SerializeToString())) is None


def test_a_tokenizer_json_that_came_with_the_model_is_written_back(tmp_path):
    files = {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"chat_template": "x"}', "chat_template.jinja": b"y"}
    SentencePieceTokenizer(imported_model(), files).save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    del files["tokenizer.json"]
    SentencePieceTokenizer(imported_model(), files).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert (config["chat_template"], config["tokenizer_class"]) == ("x", "PreTrainedTokenizerFast")
    assert (tmp_path / "tokenizer.json").read_bytes() != b"{}"
