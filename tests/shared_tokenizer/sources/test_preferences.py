"""Rows with a chosen and a rejected answer, as published data sets write them."""

import pytest

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.sources.columns import find_columns, read_columns, unused_columns
from shared_tokenizer.sources.documents import Rejected, to_document
from shared_tokenizer.sources.preferences import Preference
from shared_tokenizer.sources.row_rules import RowRules

ASK = {"role": "user", "content": "Two and two?"}
YES, NO = {"role": "assistant", "content": "Four."}, {"role": "assistant", "content": "Five."}
ASKED = Message("user", "Two and two?", learned=False)
PAIR = Preference((ASKED, Message("assistant", "Four.")), (ASKED, Message("assistant", "Five.")))
SYSTEM = Message("system", "Be brief.", learned=False)


def read(row):
    """Return the pair of a row and its unused columns."""
    columns, holds_chats = find_columns([row], RowRules())
    assert holds_chats and columns.preference is not None
    return read_columns(row, columns), list(unused_columns(row, columns))


ROWS = {
    "trl texts": ({"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five."}, []),
    "trl lists": ({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}, []),
    "trl without a prompt": ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, []),
    "ultrafeedback": (
        {
            "prompt": "Two and two?",
            "prompt_id": "x",
            "chosen": [ASK, YES],
            "rejected": [ASK, NO],
            "messages": [ASK, YES],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        ["prompt_id", "messages", "score_chosen", "score_rejected"],
    ),
    "another prompt": ({"prompt": "x", "chosen": [ASK, YES], "rejected": [ASK, NO]}, ["prompt"]),
    "argilla": (
        {"instruction": "Two and two?", "chosen_response": "Four.", "rejected_response": "Five.", "chosen_rating": 5},
        ["chosen_rating"],
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: Two and two?\n\nAssistant: Four.",
            "rejected": "\n\nHuman: Two and two?\n\nAssistant: Five.",
        },
        [],
    ),
    "csv": ({"prompt": "Two and two?", "chosen": str([ASK, YES]), "rejected": str([ASK, NO])}, []),
    "headings": ({"Prompt": "Two and two?", "Chosen": "Four.", "Rejected": "Five."}, []),
    "input": ({"input": "Two and two?", "chosen": "Four.", "rejected": "Five."}, []),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_published_sets_are_one_pair(name):
    row, unused = ROWS[name]
    assert read(row) == (PAIR, unused)


def test_a_system_column_stands_before_both():
    row = {"system": "Be brief.", "question": "Two and two?", "chosen": "Four.", "rejected": "Five."}
    assert read(row) == (Preference((SYSTEM, *PAIR.chosen), (SYSTEM, *PAIR.rejected)), [])


def test_what_both_conversations_share_is_context_and_all_answers_after_it_are_learned():
    again = {"role": "user", "content": "Sure?"}
    row = {"chosen": [ASK, YES, again, YES, again, YES], "rejected": [ASK, YES, again, NO]}
    pair = read(row)[0]
    assert [turn.learned for turn in pair.chosen if turn.role == "assistant"] == [False, True, True]
    assert [turn.learned for turn in pair.rejected if turn.role == "assistant"] == [False, True]


COMPARE_NOTHING = {
    "null": ({"prompt": "a", "chosen": "b", "rejected": None}, "unpaired", "'rejected': found no answer"),
    "nan": ({"prompt": "a", "chosen": float("nan"), "rejected": "b"}, "unpaired", "'chosen': found no answer"),
    "blank": ({"prompt": "a", "chosen": "b", "rejected": " "}, "unpaired", "'rejected': found no answer"),
    "no key": ({"prompt": "a", "chosen": "b"}, "unpaired", "'rejected': found no answer"),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal_answers", "equal answers"),
}


@pytest.mark.parametrize("name", COMPARE_NOTHING)
def test_a_row_that_compares_nothing_has_a_kind_of_its_own(name):
    row, kind, message = COMPARE_NOTHING[name]
    columns = find_columns([ROWS["trl texts"][0]], RowRules())[0]
    found = to_document(row, columns, "x:1", RowRules(), holds_chats=True)
    assert isinstance(found, Rejected) and found.kind == kind and message in found.reason


BAD = {
    "no question": ({"chosen": "a b", "rejected": "c d"}, "a text without the column of its question"),
    "no question of a list": ({"chosen": [YES], "rejected": [NO]}, "an answer without its question"),
    "two questions": (
        {"prompt": "a", "question": "b", "chosen": "c", "rejected": "d"},
        "prompt, question beside chosen",
    ),
    "other questions": ({"chosen": [ASK, YES], "rejected": [YES | {"role": "user"}, NO]}, "a turn of the user where"),
    "a beginning": ({"chosen": [ASK, YES, ASK, NO], "rejected": [ASK, YES]}, "a turn of the user where|no turn where"),
    "not learned": ({"chosen": [ASK, YES | {"weight": 0}], "rejected": [ASK, NO]}, "not to be learned"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_pair_is_refused(name):
    row, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        read(row)


def test_the_chosen_answers_are_read_alone_where_they_are_named():
    row = ROWS["trl without a prompt"][0]
    columns, _ = find_columns([row], RowRules(text_column="chosen"))
    assert read_columns(row, columns) == (Message("user", "Two and two?"), Message("assistant", "Four."))


def test_answers_that_are_whole_conversations_beside_their_question_are_read_as_these():
    begun = "\n\nHuman: Two and two?\n\nAssistant:"
    row = {"prompt": "Two and two?", "chosen": f"{begun} Four.", "rejected": f"{begun} Five."}
    whole = {"prompt": begun, "chosen": f"{begun} Four.", "rejected": f"{begun} Five."}
    alone = {"chosen": f"{begun} Four.", "rejected": f"{begun} Five."}
    assert read(row)[0] == read(whole)[0] == read(alone)[0]
    other, _ = read({"prompt": "Another question", "chosen": f"{begun} Four.", "rejected": f"{begun} Five."})
    assert other.chosen[0].content == "Another question"
