import pytest

from jaxlm.studio.address import find_key, need_pages
from jaxlm.studio.processes.jobs import KEY_VARIABLE
from jaxlm.studio.studio_config import AddressConfig


def test_another_host_needs_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert find_key(AddressConfig()) is None
    with pytest.raises(ValueError, match=r"host: found 0\.0\.0\.0, .* no key"):
        find_key(AddressConfig(host="0.0.0.0"))
    monkeypatch.setenv(KEY_VARIABLE, "a-long-enough-key")
    with pytest.raises(ValueError, match="no allowed_hosts"):
        find_key(AddressConfig(host="0.0.0.0"))
    monkeypatch.setenv(KEY_VARIABLE, "a-long-enough-key")
    assert find_key(AddressConfig(host="0.0.0.0", allowed_hosts=["here"])) == "a-long-enough-key"


def test_public_pages_need_no_key_but_a_name(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert find_key(AddressConfig(host="0.0.0.0", allowed_hosts=["here"]), is_public=True) is None
    with pytest.raises(ValueError, match="no allowed_hosts"):
        find_key(AddressConfig(host="0.0.0.0"), is_public=True)
    monkeypatch.setenv(KEY_VARIABLE, "a-long-enough-key")
    assert find_key(AddressConfig(), is_public=True) == "a-long-enough-key"


@pytest.mark.parametrize("key", ["short", "two words are no key", "ключключключ"])
def test_a_key_that_is_none_is_refused(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match="expected one word of 12 or more"):
        find_key(AddressConfig())


@pytest.mark.parametrize("extra", ["studio", "demo"])
def test_a_missing_library_says_how_to_get_it(monkeypatch, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pip install '\.\[{extra}\]', or make {extra}"):
        need_pages(extra)
