import pytest

from jaxlm.studio.command import StudioConfig, find_key, main, open_folders
from jaxlm.studio.processes.jobs import KEY_VARIABLE


def test_another_host_needs_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert find_key(StudioConfig()) is None
    with pytest.raises(ValueError, match=r"host: found 0\.0\.0\.0, .* no key"):
        find_key(StudioConfig(host="0.0.0.0"))
    monkeypatch.setenv(KEY_VARIABLE, "a-long-enough-key")
    with pytest.raises(ValueError, match="no allowed_hosts"):
        find_key(StudioConfig(host="0.0.0.0"))
    monkeypatch.setenv(KEY_VARIABLE, "a-long-enough-key")
    assert find_key(StudioConfig(host="0.0.0.0", allowed_hosts=["here"])) == "a-long-enough-key"


@pytest.mark.parametrize("key", ["short", "two words are no key", "ключключключ"])
def test_a_key_that_is_none_is_refused(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match="expected one word of 12 or more"):
        find_key(StudioConfig())


def test_folders_have_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="root: found no folder"):
        open_folders(StudioConfig(root=str(tmp_path / "no")))
    with pytest.raises(ValueError, match="allow: found no folder"):
        open_folders(StudioConfig(root=str(tmp_path), allow=[str(tmp_path / "no")]))


def test_a_missing_library_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[studio\]'"):
        main(StudioConfig(root=str(tmp_path)))
