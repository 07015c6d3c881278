from dataclasses import dataclass

import pytest

from shared_tokenizer.settings import check_bounds, check_unchanged, resumable_fields, setting, with_new_names


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings with every kind of bound."""

    count: int = setting(1, at_least=1, resumable=True)
    amount: int = setting(0, at_least=0)
    rate: float = setting(0.5, more_than=0)
    share: float = setting(0.5, more_than=0, less_than=1)
    percent: float | None = setting(None, at_least=0, at_most=1)
    size: int | str = setting("auto", at_least=2, formerly="width")
    names: list[str] = setting(factory=list)
    free: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, "config.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, r"config\.count: found 0, expected at least 1$"),
        ({"amount": -1}, r"config\.amount: found -1, expected 0 or more$"),
        ({"rate": 0.0}, r"config\.rate: found 0\.0, expected more than 0 and finite$"),
        ({"rate": float("nan")}, r"config\.rate: found nan, expected more than 0 and finite$"),
        ({"rate": float("inf")}, r"config\.rate: found inf, expected more than 0 and finite$"),
        ({"share": 1.0}, r"config\.share: found 1\.0, expected more than 0, less than 1$"),
        ({"percent": 1.1}, r"config\.percent: found 1\.1, expected 0 to 1$"),
        ({"size": 1}, r"config\.size: found 1, expected at least 2$"),
    ],
)
def test_values_out_of_bounds_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)


def test_words_none_and_fields_without_bounds_are_allowed():
    assert Config(size="auto", percent=None, free=float("nan")).size == "auto"
    assert Config(count=1, amount=0, percent=1.0).percent == 1.0


def test_a_resumed_run_may_change_the_marked_fields_only():
    assert resumable_fields(Config) == {"count"}


def test_files_of_earlier_versions_have_earlier_names():
    assert with_new_names(Config, {"width": 3, "rate": 2.0, "unknown": 1}) == {"size": 3, "rate": 2.0, "unknown": 1}


def test_a_setting_without_effect_is_refused():
    check_unchanged(Config(), ("count", "names"), "here")
    with pytest.raises(ValueError, match="names: has no effect here"):
        check_unchanged(Config(names=["a"]), ("count", "names"), "here")
