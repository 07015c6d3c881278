import pytest

from jaxlm.common.run.complete_checkpoints import DAMAGED, KEEP_DAMAGED, quarantine
from jaxlm.common.run.result import new_result, place_result
from shared_tokenizer.manifest import DamagedError, sealed_directory, verify_manifest


def write(directory, content):
    with sealed_directory(directory) as temporary:
        (temporary / "model").write_text(content)
    return directory


def place(run, content, changes=()):
    lines = []
    place_result(write(new_result(run / "artifact"), content), run / "artifact", changes, lines.append)
    verify_manifest(run / "artifact")
    assert (run / "artifact" / "model").read_text() == content and not (run / "artifact.new").exists()
    return " ".join(lines)


def test_the_result_of_a_shorter_run_is_kept_under_another_name(tmp_path):
    assert place(tmp_path, "short") == ""
    assert place(tmp_path, "short") == ""
    assert "the one before is kept as" in place(tmp_path, "long", [{"from": 20}])
    place(tmp_path, "longer", [{"from": 20}, {"from": 40}])
    place(tmp_path, "other")
    place(tmp_path, "another")
    names = ["artifact", "artifact-before", "artifact-before-again", "artifact-step-20", "artifact-step-40"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [(tmp_path / name / "model").read_text() for name in names[1:]] == ["longer", "other", "short", "long"]


def test_a_damaged_result_and_an_empty_folder_are_replaced(tmp_path):
    (tmp_path / "artifact").mkdir()
    place(tmp_path, "whole")
    (tmp_path / "artifact" / "model").write_text("wHole")
    assert "was damaged and is written anew" in place(tmp_path, "whole")
    assert (tmp_path / DAMAGED / "artifact" / "model").read_text() == "wHole"


def test_a_new_result_that_is_not_as_it_was_written_replaces_nothing(tmp_path):
    place(tmp_path, "old")
    new = write(new_result(tmp_path / "artifact"), "new")
    (new / "model").write_text("nEw")
    with pytest.raises(DamagedError):
        place_result(new, tmp_path / "artifact", (), print)
    assert (tmp_path / "artifact" / "model").read_text() == "old"


def test_what_a_killed_start_left_is_written_anew(tmp_path):
    write(tmp_path / "artifact.new", "of a killed start")
    place(tmp_path, "new")
    assert (tmp_path / "artifact" / "model").read_text() == "new"
    assert not (tmp_path / "artifact.new").exists()


def test_damaged_directories_do_not_grow_without_end(tmp_path):
    lines = []
    (tmp_path / DAMAGED).mkdir()
    (tmp_path / DAMAGED / "notes").symlink_to(tmp_path)  # of a person
    for number in range(6):
        (tmp_path / "4").mkdir()
        (tmp_path / "4" / "number").write_text(str(number))
        quarantine(tmp_path / "4", tmp_path / DAMAGED, lines.append)
    kept = sorted((path / "number").read_text() for path in (tmp_path / DAMAGED).glob("4*"))
    assert (tmp_path / DAMAGED / "notes").is_symlink()
    assert kept == ["3", "4", "5"] and len(kept) == KEEP_DAMAGED
    assert len(lines) == 3 and "removed" in lines[0]
