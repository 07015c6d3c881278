import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from jaxlm.common.model_name import parse_model_name
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.shelf import place
from jaxlm.common.shelf.card import CARD
from jaxlm.common.shelf.chunks import CHUNK_BYTES, copy_with_digests, damage
from jaxlm.common.shelf.entry import LONGEST_NOTES
from jaxlm.common.shelf.shelf import Shelf
from shared_tokenizer.manifest import DamagedError, verify_manifest

SPAWN = multiprocessing.get_context("spawn")


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of all files that people see below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_run_comes_onto_the_shelf_with_what_is_known_of_it(shelf, run):
    found = shelf.add(run, "mine", licence="Apache-2.0", notes="the first")
    entry = found.entry
    assert (str(found.name), found.model) == ("mine@1", shelf.root / "mine" / "1" / "model")
    assert (entry.form, entry.licence, entry.notes, entry.bits_per_byte) == ("packed", "apache-2.0", "the first", 1.25)
    assert entry.evaluation == {"step": 5, "loss": 2.5, "bits_per_byte": 1.25}
    assert entry.run["fingerprints"] == {"data": "d" * 64, "init_from": "1" * 64}
    assert (entry.run["name"], entry.run["steps"], entry.run["recipe"]["optimizer.learning_rate"]) == ("mine", 9, 0.01)
    assert 0 < entry.ternary_parameters < entry.parameters
    assert entry.bytes == sum(path.stat().st_size for path in (run / "artifact").iterdir())
    assert tree(found.model) == tree(run / "artifact")
    verify_manifest(found.model)
    again = shelf.add(found.model, "mine")  # of a model without a run nothing is made up
    assert str(again.name) == "mine@2" and again.entry.run == {} and again.entry.sha256 == entry.sha256
    assert [str(each.name) for each in shelf.entries()] == ["mine@1", "mine@2"]
    assert shelf.verify("mine") == [] and str(shelf.find("mine").name) == "mine@2"


def test_damage_is_found_to_a_range_of_bytes(tmp_path):
    source, copy = tmp_path / "large", tmp_path / "copy"
    source.write_bytes(bytes(5 * CHUNK_BYTES + 10))
    digests = copy_with_digests(source, copy)
    assert damage(copy, digests) == []
    with copy.open("r+b") as file:
        for position in (CHUNK_BYTES, 2 * CHUNK_BYTES + 5, 5 * CHUNK_BYTES + 9):
            file.seek(position)
            file.write(b"\1")
    assert damage(copy, digests) == ["bytes 1,048,576 to 3,145,727 differ", "bytes 5,242,880 to 5,242,889 differ"]
    os.truncate(copy, 5 * CHUNK_BYTES)
    assert damage(copy, digests) == ["found 5,242,880 bytes, expected 5,242,890", "bytes 1,048,576 to 3,145,727 differ"]
    copy.unlink()
    assert damage(copy, digests) == ["missing"]


def test_verify_finds_every_kind_of_damage(shelf, run):
    found = shelf.add(run, "mine")
    weights, config = found.model / "model.safetensors", found.model / "config.json"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    config.unlink()
    (found.model / "more.json").write_text("{}")
    assert sorted(shelf.verify("mine@1")) == [
        "config.json: missing",
        f"model.safetensors: bytes 0 to {len(content) - 1:,} differ",
        "more.json: not of the model; remove it",
    ]
    for name in ("chunks.json", "entry.json"):
        path = found.folder / name
        path.write_text(path.read_text().replace("5", "6"))
        assert "the record of its digests is damaged" in shelf.verify("mine@1")[0]
    said = []
    assert shelf.entries(said.append) == [] and "entry.json: damaged" in said[0]
    with pytest.raises(DamagedError, match=r"add that, and remove this one"):
        shelf.find("mine")


def test_what_is_removed_comes_back_as_it_was(shelf, run):
    shelf.add(run, "mine")
    shelf.add(run, "mine")
    before = tree(shelf.root)
    with pytest.raises(ValueError, match=r"expected the one to remove; the shelf has mine@1, mine@2"):
        shelf.remove("mine")
    assert shelf.remove("mine@2") == shelf.root / ".trash" / "mine@2"
    assert [str(each.name) for each in shelf.entries()] == ["mine@1"]
    assert str(shelf.add(run, "mine").name) == "mine@3"  # a number is not given twice
    shelf.remove("mine@3")
    shelf.remove("mine@1")
    assert list(map(str, shelf.trash())) == ["mine@1", "mine@2", "mine@3"] and not (shelf.root / "mine").exists()
    assert str(shelf.restore("mine").name) == "mine@3"
    shelf.remove("mine@3")
    shelf.restore("mine@1")
    shelf.restore("mine@2")
    assert {name: content for name, content in tree(shelf.root).items() if ".trash" not in name} == before
    with pytest.raises(ValueError, match=r"mine@2: is not in the trash of .*, which holds mine@3"):
        shelf.restore("mine@2")


def test_names_change_and_cards_with_them(shelf, run):
    for name in ("mine", "mine", "other"):
        shelf.add(run, name)
    assert [str(each.name) for each in shelf.rename("mine@2", "other")] == ["other@2"]
    assert [str(each.name) for each in shelf.rename("mine", "renamed")] == ["renamed@1"]
    assert "# renamed@1" in (shelf.root / "renamed" / "1" / CARD).read_text()
    with pytest.raises(ValueError, match=r"renamed: is a name of the shelf already"):
        shelf.rename("other", "renamed")
    with pytest.raises(ValueError, match=r"found Renamed, but the shelf has renamed"):
        shelf.add(run, "Renamed")
    assert [str(each.name) for each in shelf.rename("renamed", "Renamed")] == ["Renamed@1"]
    changed = shelf.change("other@2", licence="MIT", notes="better")
    assert (changed.entry.licence, changed.entry.notes) == ("mit", "better")
    assert "license: mit" in (changed.folder / CARD).read_text() and shelf.verify("other@2") == []


ATTACKS = (
    *("../out", "..", ".", "", "a/b", "/etc/passwd", "a\\b", ".hidden", "-flag", "mine.", "a\0b"),
    *("<script>alert(1)</script>", "\x1b[31mred", "\u202egnp.exe", "a" * 300, "mine@0", "mine@1@2", "mine@-1", "a b"),
)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_name_leads_out_of_the_shelf(shelf, run, name):
    before = tree(run)
    for call in (
        lambda: shelf.add(run, name),
        lambda: shelf.find(name),
        lambda: shelf.verify(name),
        lambda: shelf.remove(name),
        lambda: shelf.restore(name),
        lambda: shelf.rename(name, "new"),
    ):
        with pytest.raises(ValueError, match=r"^name: found .*, expected up to 64 letters") as error:
            call()
        assert len(str(error.value)) < 600 and "\x1b" not in str(error.value) and "\u202e" not in str(error.value)
    assert tree(run) == before and not shelf.root.exists()


def test_what_is_no_root_is_refused(tmp_path, run):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"root: .*file is a file, expected the folder of the shelf"):
        Shelf(tmp_path / "file")
    with pytest.raises(ValueError, match=r"lies inside .*artifact, which is sealed"):
        Shelf(run / "artifact" / "models").add(run, "mine")
    assert (tmp_path / "file").read_text() == "not a folder"


def refused(shelf, message, *arguments, **settings):
    before = tree(shelf.root) if shelf.root.exists() else {}
    with pytest.raises((ValueError, OSError), match=message):
        shelf.add(*arguments, **settings)
    assert (tree(shelf.root) if shelf.root.exists() else {}) == before
    assert not list(shelf.root.glob(".begun-*")) if shelf.root.exists() else True


def test_what_is_no_whole_model_leaves_the_shelf_as_it_was(shelf, run, tmp_path):
    shelf.add(run, "mine")
    refused(shelf, r"licence: found 'any licence'", run, "mine", licence="any licence")
    refused(shelf, rf"notes: found {LONGEST_NOTES + 1:,} characters", run, "mine", notes="a" * (LONGEST_NOTES + 1))
    refused(shelf, r"nowhere: found no file, expected a model", tmp_path / "nowhere", "mine")
    os.mkfifo(run / "artifact" / "pipe")
    refused(shelf, r"pipe: is no regular file", run, "mine")
    (run / "artifact" / "pipe").unlink()
    (run / "artifact" / "config.json").write_bytes((run / "artifact" / "config.json").read_bytes() + b" ")
    refused(shelf, r"config.json: damaged, found sha256", run, "mine")


def test_a_model_that_changes_while_it_is_added_is_refused(shelf, run, monkeypatch):
    weights, copy = run / "artifact" / "model.safetensors", place.copy_with_digests

    def changing(source, destination):
        found = copy(source, destination)
        if source == weights:
            os.utime(weights, ns=(1, 1))
        return found

    monkeypatch.setattr(place, "copy_with_digests", changing)
    refused(shelf, r"artifact: model.safetensors changed while it was copied", run, "mine")

    def vanishing(source, destination):
        weights.unlink(missing_ok=True)
        return copy(source, destination)

    monkeypatch.setattr(place, "copy_with_digests", vanishing)
    refused(shelf, r"changed while it was copied; add the model when nobody writes to it", run, "mine")
    assert not shelf.root.exists() or not list(shelf.root.rglob("model.safetensors"))


def test_a_full_disk_leaves_the_shelf_as_it_was(shelf, run, monkeypatch):
    shelf.add(run, "mine")

    def full(source, destination):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, "copy_with_digests", full)
    before = tree(shelf.root)
    refused(shelf, r"No space left on device: '.*model/MANIFEST.sha256'", run, "mine")
    assert tree(shelf.root) == before != {}


def test_two_processes_add_at_once(shelf, run):
    processes = [SPAWN.Process(target=shelf.add, args=(run, "mine")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 2
    assert [str(each.name) for each in shelf.entries()] == ["mine@1", "mine@2"]
    assert all(shelf.verify(str(each.name)) == [] for each in shelf.entries())


def _never_add(shelf: Shelf, run: Path) -> None:
    """Begin to add a model, and hang in its copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, "copy_with_digests", lambda source, destination: time.sleep(60))
        shelf.add(run, "mine")


def test_a_kill_while_a_model_is_added_loses_nothing(shelf, run):
    shelf.add(run, "mine")
    process = SPAWN.Process(target=_never_add, args=(shelf, run))
    process.start()
    while not list(shelf.root.glob(".begun-*/new/model")):
        time.sleep(0.01)
    assert process.pid is not None
    assert str(shelf.add(run, "mine").name) == "mine@2"  # what another process has begun is left alone
    (begun,) = shelf.root.glob(".begun-*")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert str(shelf.add(run, "mine").name) == "mine@3" and not begun.exists()
    assert all(shelf.verify(str(each.name)) == [] for each in shelf.entries())


def test_texts_of_a_run_are_data_in_the_card(shelf, run):
    settings = (run / "config.yaml").read_text().replace("ternary-tiny", "'<script>alert(1)</script>'")
    (run / "config.yaml").write_text(settings)
    notes = "</div><script>alert(2)</script>\n[a](javascript:b) \x1b[31m \u202egnp\n---\nlicense: other\n" + "a" * 1000
    found = shelf.add(run, "mine", notes=notes)
    text = (found.folder / CARD).read_text()
    assert "<script>" not in text and "\x1b" not in text and "\u202e" not in text and "[a](" not in text
    assert "&lt;script&gt;alert(1)" in text and text.split("---")[1].count("license") == 0


def test_a_damaged_log_does_not_keep_a_model_off_the_shelf(shelf, run):
    RunDirectory(run).metrics.write_text("no json\n")
    (run / "identity.json").write_text("{}")
    entry = shelf.add(run, "mine").entry
    assert entry.evaluation == {} and entry.run["name"] == "mine" and "fingerprints" not in entry.run


def test_an_entry_of_a_later_version_is_read(shelf, run):
    path = shelf.add(run, "mine").folder / "entry.json"
    content = json.loads(path.read_text()) | {"later": 1}
    del content["entry_sha256"]
    digest = hashlib.sha256((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()).hexdigest()
    path.write_text(json.dumps({**content, "entry_sha256": digest}, indent=1, ensure_ascii=False) + "\n")
    assert shelf.find("mine").entry.form == "packed"


def test_names_are_read_as_they_are_written():
    assert str(parse_model_name("Qwen3-0.6b_x@12")) == "Qwen3-0.6b_x@12"
    assert parse_model_name("a").version is None
