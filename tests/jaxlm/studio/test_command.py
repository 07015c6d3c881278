import pytest

from jaxlm.studio.command import main, open_folders
from jaxlm.studio.studio_config import StudioConfig


def test_folders_have_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="root: found no folder"):
        open_folders(StudioConfig(root=str(tmp_path / "no")))
    with pytest.raises(ValueError, match="allow: found no folder"):
        open_folders(StudioConfig(root=str(tmp_path), allow=[str(tmp_path / "no")]))


def test_a_missing_library_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[studio\]'"):
        main(StudioConfig(root=str(tmp_path)))
