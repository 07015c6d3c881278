import pytest

from shared_tokenizer.data.evaluation_text import EvaluationText
from shared_tokenizer.sources.documents import Document, is_validation


def test_held_out_are_the_documents_that_preparation_holds_out(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"line {i} of text\n" for i in range(100)))
    whole = EvaluationText(document_characters=20).read([str(tmp_path)])
    found = EvaluationText(document_characters=20, held_out=0.3).read([str(tmp_path)])
    assert found == [text for text in whole if is_validation(Document("", text), 0.3)]
    assert 0 < len(found) < len(whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"seq_len": 0}, "seq_len: found 0"), ({"batch_size": 0}, "batch_size: found 0"), ({"held_out": 0.0}, "held_out")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationText(**settings)


def test_nothing_held_out_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("one short document")
    with pytest.raises(ValueError, match="held_out: found no document"):
        EvaluationText(held_out=1e-9).read([str(tmp_path)])
