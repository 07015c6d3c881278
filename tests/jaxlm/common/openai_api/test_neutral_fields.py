import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.neutral_fields import IGNORED, NEUTRAL_VALUES, check_neutral


@pytest.mark.parametrize("name", [*NEUTRAL_VALUES, "unheard_of"])
def test_null_and_what_is_empty_ask_for_nothing_in_any_field(name):
    for value in (None, "", [], {}):
        check_neutral({name: value})


def test_a_value_that_is_listed_asks_for_nothing_also_as_a_fraction():
    for name, values in NEUTRAL_VALUES.items():
        for value in values:
            check_neutral({name: value})
            if isinstance(value, int) and not isinstance(value, bool):
                check_neutral({name: float(value)})
    for name in IGNORED:
        check_neutral({name: {"any": "thing"}})
    check_neutral({"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "xtc_probability": 0, "xtc_threshold": 0.1})


def test_false_asks_for_nothing_where_it_is_the_default():
    check_neutral({"ignore_eos": False, "use_beam_search": False, "return_token_ids": False, "echo": False})
    for name in ("skip_special_tokens", "add_special_tokens", "do_sample", "n"):
        with pytest.raises(ApiError, match=f"{name}: found False"):
            check_neutral({name: False})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", True, "n: found True, expected 1 or no such field: it is not supported here"),
        ("logprobs", 0, "logprobs: found 0, expected False"),
        ("typical_p", 0.9, r"typical_p: found 0\.9, expected 1 "),
        ("unheard_of", 0, "unheard_of: found a field that is not supported here; leave it out"),
        ("unheard_of", True, "unheard_of: found a field"),
        ("guided_json", {"type": "object"}, "guided_json: found a field"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_its_name(name, value, message):
    with pytest.raises(ApiError, match=message) as caught:
        check_neutral({name: value})
    assert (caught.value.status, caught.value.body()["error"]["param"]) == (400, name)
