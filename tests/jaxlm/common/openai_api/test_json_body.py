import pytest

from jaxlm.common.openai_api.errors import LONGEST_MESSAGE, ApiError
from jaxlm.common.openai_api.json_body import Fields, parse_object, refuse


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"[1]", "found a JSON list, expected an object"),
        (b"null", "found a JSON NoneType"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "Infinity is no JSON number"),
        (b'{"a": "\xff"}', "no valid JSON in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "no valid JSON in UTF-8"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udc00": 1}', "surrogates not allowed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "more than 32 levels"),
        (b'{"a": ' + b"[" * 100_000, "more than 32 levels"),
        (b'{"a": ' + b'{"a": ' * 100_000, "more than 32 levels"),
    ],
)
def test_what_is_no_object_of_unicode_is_refused(body, message):
    with pytest.raises(ApiError, match=message) as caught:
        parse_object(body)
    assert caught.value.status == 400


def test_numbers_are_within_bounds_and_no_truth_values():
    for value in (True, "1", float("nan"), float("inf"), -1e-9, 2.1, 10**400, [1]):
        with pytest.raises(ApiError, match=r"temperature: found .*, expected a number from 0 to 2"):
            Fields({"temperature": value}).number("temperature", 1, 0, 2)
    for value in (False, "1", 1.5, 0, 0.0, 10, 10**4000, 1e300, float("nan")):
        with pytest.raises(ApiError, match=r"n: found .*, expected a whole number from 1 to 9"):
            Fields({"n": value}).integer("n", 1, 9)
    for value in (0, 1, "true", []):
        with pytest.raises(ApiError, match=r"stream: found .*, expected true or false"):
            Fields({"stream": value}).flag("stream")


def test_a_whole_number_is_one_however_it_is_written():
    fields = Fields({"a": 9.0, "b": -1, "c": -1.0, "d": 1e300, "e": 10**400})
    found = fields.integer("a", 1, 9), fields.integer("b", 1, 9, unset=-1), fields.integer("c", 1, 9, unset=-1)
    assert found == (9, None, None)
    assert (fields.integer("d", 1, None), fields.integer("e", 1, None)) == (int(1e300), 10**400)
    with pytest.raises(ApiError, match="n: found -2, expected a whole number of at least 1, or -1"):
        Fields({"n": -2}).integer("n", 1, None, unset=-1)


def test_a_byte_order_mark_is_no_part_of_the_json():
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_null_is_as_good_as_absent():
    fields = Fields({"a": None, "b": None, "c": None, "d": 1})
    assert (fields.number("a", 0.5, 0, 1), fields.integer("b", 0, 1), fields.flag("c")) == (0.5, None, False)
    assert fields.rest == {"d": 1}


def test_what_was_found_does_not_come_back_whole():
    assert len(str(refuse("a", "x" * 10_000, "less"))) < 200
    assert len(ApiError(400, "x" * 10_000).body()["error"]["message"]) == LONGEST_MESSAGE + 3
