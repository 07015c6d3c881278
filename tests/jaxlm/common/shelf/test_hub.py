"""A hub that is a folder: commits, branches and files as `HfApi` has them."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxlm.common.formats.open_model import open_model
from jaxlm.common.shelf.hub import pull, push
from jaxlm.common.shelf.shelf import Shelf
from shared_tokenizer.manifest import DamagedError, verify_manifest


class Hub:
    """The calls of `huggingface_hub.HfApi` that the shelf makes."""

    def __init__(self, place: Path):
        self.place, self.calls, self.changed = place, [], None

    def create_repo(self, repository, *, repo_type, private, exist_ok):
        self.calls.append(("create_repo", repository, repo_type, private, exist_ok))
        (self.place / repository).mkdir(parents=True, exist_ok=True)

    def create_commit(self, repository, operations, *, commit_message):
        self.calls.append(("create_commit", commit_message))
        commit = hashlib.sha1(str(len(self.calls)).encode()).hexdigest()
        for operation in operations:
            path = self.place / repository / commit / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                path.write_bytes(file.read())
        if self.changed:
            self.change(repository, commit)
        (self.place / repository / "main").write_text(commit)
        return SimpleNamespace(oid=commit)

    def change(self, repository, commit):
        path = self.place / repository / commit / self.changed
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def model_info(self, repository, *, revision):
        return SimpleNamespace(sha=revision or (self.place / repository / "main").read_text())

    def list_repo_tree(self, repository, *, recursive, revision):
        folder = self.place / repository / revision
        yield SimpleNamespace(path="folder", tree_id="1")  # as a RepoFolder has it
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                is_large = path.suffix == ".safetensors"
                lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if is_large else None
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                yield SimpleNamespace(
                    path=path.relative_to(folder).as_posix(), size=len(content), blob_id=blob, lfs=lfs
                )

    def snapshot_download(self, repository, *, revision, local_dir, allow_patterns):
        self.calls.append(("snapshot_download", revision))
        shutil.copytree(self.place / repository / revision, local_dir, dirs_exist_ok=True)
        (Path(local_dir) / ".cache" / "huggingface").mkdir(parents=True)
        for path in Path(local_dir).iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in allow_patterns):
                path.unlink()


@pytest.fixture
def hub(tmp_path):
    return Hub(tmp_path / "hub")


def test_what_is_pushed_comes_back_equal_to_the_byte(shelf, run, hub, tmp_path):
    sent = shelf.add(run, "mine", licence="mit")
    commit = push(shelf, "mine", "me/ternary", private=True, hub=hub)
    assert hub.calls == [("create_repo", "me/ternary", "model", True, True), ("create_commit", "mine@1")]
    copy = tmp_path / "hub" / "me" / "ternary" / commit
    verify_manifest(copy)  # a copy of the repository is a model that loads as it is, card and all
    assert open_model(copy).config == open_model(sent.model).config
    card = (copy / "README.md").read_text()
    assert "# me/ternary" in card and "hf download me/ternary --local-dir mine" in card and "license: mit" in card
    assert str(run) not in card and "/home/me" not in card
    other = Shelf(tmp_path / "other")
    found = pull(other, "me/ternary", hub=hub)
    assert str(found.name) == "ternary@1" and found.entry.source == f"me/ternary of the hub, commit {commit}"
    assert hub.calls[-1] == ("snapshot_download", commit)
    assert found.entry.sha256 == sent.entry.sha256 and other.verify("ternary") == []
    assert {path.name: path.read_bytes() for path in found.model.iterdir()} == {
        path.name: path.read_bytes() for path in sent.model.iterdir()
    }


def test_a_revision_is_pinned_to_its_commit(shelf, run, hub):
    shelf.add(run, "mine")
    first = push(shelf, "mine", "me/ternary", private=False, hub=hub)
    push(shelf, "mine", "me/ternary", private=False, hub=hub)
    assert pull(shelf, "me/ternary", "old", revision=first, hub=hub).entry.source.endswith(first)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_file_that_changed_on_its_way_is_found(shelf, run, hub, name):
    shelf.add(run, "mine")
    hub.changed = name
    with pytest.raises(
        ValueError, match=rf"me/ternary: {name} of commit \w+ is not the file that was sent; push again"
    ):
        push(shelf, "mine", "me/ternary", private=True, hub=hub)


def test_a_download_that_differs_from_its_seal_or_its_commit_stays_off_the_shelf(shelf, run, hub, monkeypatch):
    shelf.add(run, "mine")
    commit = push(shelf, "mine", "me/ternary", private=True, hub=hub)
    hub.changed = "model.safetensors"
    hub.change("me/ternary", commit)  # the hub states the digest of what it has: only the seal knows better
    with pytest.raises(DamagedError, match=r"model.safetensors: damaged"):
        pull(shelf, "me/ternary", "copy", hub=hub)
    download = hub.snapshot_download

    def cut_short(*arguments, local_dir, **settings):
        download(*arguments, local_dir=local_dir, **settings)
        (Path(local_dir) / "config.json").write_text("{")

    monkeypatch.setattr(hub, "snapshot_download", cut_short)
    with pytest.raises(ValueError, match=r"config.json is not the file of commit"):
        pull(shelf, "me/ternary", "copy", hub=hub)
    assert [str(each.name) for each in shelf.entries()] == ["mine@1"] and not list(shelf.root.glob(".begun-*"))


def test_a_damaged_model_is_not_sent(shelf, run, hub):
    found = shelf.add(run, "mine")
    (found.model / "config.json").unlink()
    with pytest.raises(ValueError, match=r"mine: is damaged on the shelf and was not sent: config.json: missing"):
        push(shelf, "mine", "me/ternary", private=True, hub=hub)
    assert hub.calls == []


@pytest.mark.parametrize("repository", ["me", "../me/model", "me/../you", "https://hf.co/me/model", "me/" + "a" * 300])
def test_what_is_no_repository_is_refused(shelf, run, hub, repository):
    shelf.add(run, "mine")
    for call in (
        lambda: push(shelf, "mine", repository, private=True, hub=hub),
        lambda: pull(shelf, repository, hub=hub),
    ):
        with pytest.raises(ValueError, match=r"repository: found '.*, expected OWNER/NAME"):
            call()
    assert hub.calls == []
