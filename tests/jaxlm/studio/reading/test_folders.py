import pytest

from jaxlm.studio.reading.folders import MODELS, RUNS, Folders, free_name, plain_name


@pytest.fixture
def folders(tmp_path):
    for name in ("root", "allowed", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "key.txt").write_text("s")
    return Folders(tmp_path / "root", [tmp_path / "allowed"])


@pytest.mark.parametrize("path", ["../secret", "../secret/key.txt", "/etc/passwd", "runs/../../secret", "~", "a\0b"])
def test_a_path_that_leads_out_is_refused(folders, path):
    with pytest.raises(ValueError, match=r"outside of the folders|NUL"):
        folders.resolve(path)


def test_a_link_that_leads_out_is_refused_and_not_listed(folders, tmp_path):
    (folders.root / "link").symlink_to(tmp_path / "secret")
    (folders.root / "file.txt").write_text("t")
    with pytest.raises(ValueError, match="outside of the folders"):
        folders.resolve("link/key.txt")
    assert [entry.name for entry in folders.entries(folders.root)] == ["file.txt"]


def test_the_studios_own_files_are_refused(folders):
    folders.state.mkdir()
    with pytest.raises(ValueError, match="studio's own files"):
        folders.resolve(".studio/key")
    assert not folders.entries(folders.root)


def test_allowed_folders_may_be_read(folders, tmp_path):
    assert folders.resolve(str(tmp_path / "allowed")) == tmp_path / "allowed"
    assert folders.resolve("runs/first") == folders.root / "runs" / "first"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-rf", ".hidden", "a b", "<script>", "x" * 65, "a\nb"])
def test_a_name_that_is_none_is_refused(folders, name):
    with pytest.raises(ValueError, match=r"^name: found .* expected letters"):
        folders.new(RUNS, name)


def test_a_name_that_is_taken_is_refused(folders):
    (folders.root / "models" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="is there already"):
        folders.new(MODELS, "mine")
    assert free_name(folders.root / "models", "mine") == "mine-2"


def test_entries_are_shown_without_hidden_direction(folders):
    (folders.root / "a\u202egnp.txt").write_text("t")
    assert folders.entries(folders.root)[0].name == "a<U+202E>gnp.txt"
    assert plain_name("Ü <b>my texts</b>.txt") == "b-my-texts-b-.txt"
