"""The buttons of a trained run, of two runs side by side, and of the shelf: each is clicked, and its result is read."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.conftest import ROOT
from tests.browser.test_pages import series_type

_TRAINING = {
    "preset": "ternary-tiny",
    "num_train_steps": 20,
    "batch_size": 1,
    "seq_len": 32,
    "checkpoint_every_steps": 10,
    "log_every_steps": 5,
    "optimizer.warmup_steps": 2,
    "sample_tokens": 0,
}


def jaxlm(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "jaxlm", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder of texts and of two runs that differ in their seed."""
    root = tmp_path_factory.mktemp("trained")
    (root / "texts").mkdir()
    for number in range(40):
        text = "".join(f"def function_{number}_{i}(a, b):\n    return a + {i} * b\n\n" for i in range(10))
        (root / "texts" / f"{number}.txt").write_text(text)
    jaxlm("prepare", "--input", root / "texts", "--vocab_size", "320", "--output_dir", root / "data")
    for seed, name in enumerate("ab"):
        settings = _TRAINING | {"seed": seed, "data_dir": root / "data", "output_dir": root / "runs" / name}
        jaxlm("train", *(f"--{setting}={value}" for setting, value in settings.items()))
    return root


@pytest.fixture
def opened(studio, page, trained):
    """The page of a studio with these runs."""
    shutil.copytree(trained, studio.root, dirs_exist_ok=True)
    page.goto(studio.address)
    return page


def job(page, title):
    """Return the box of a job."""
    return page.locator(".q-expansion-item", has_text=title)


def ended(page, title, state):
    job(page, title).locator(".chip", has_text=state).wait_for(timeout=240_000)
    return job(page, title)


def test_a_run_shows_its_layers_and_is_evaluated(studio, opened):
    opened.goto(f"{studio.base}/run?path=runs/a")
    opened.get_by_text("Zeros of each layer").wait_for()
    assert [series_type(opened, f"{name} of each layer", "heatmap") for name in ("Zeros", "Flips")] == ["heatmap"] * 2
    opened.get_by_role("button", name="Evaluate").click()
    dialog = opened.locator(".q-dialog")
    dialog.get_by_role("button", name="Another text").click()
    opened.get_by_role("listitem").filter(has_text="texts").click()
    opened.get_by_text("0.txt").first.wait_for()
    opened.get_by_role("button", name="This folder").click()
    dialog.get_by_label("share of the documents").fill("0.2")
    dialog.get_by_role("button", name="Evaluate").click()
    box = ended(opened, "evaluate:", "done")
    (report,) = (studio.root / ".studio").glob("evaluation-*.json")
    (numbers,) = json.loads(report.read_text())["models"].values()
    text = box.inner_text()
    assert f"{numbers['bits_per_byte']:.4f}" in text and "--held_out 0.2" in text
    assert 0 < int(re.search(r"(\d+) documents", text)[1]) < 40


def test_two_runs_answer_the_same_prompt_and_their_codes_are_counted(studio, opened):
    opened.goto(f"{studio.base}/compare?runs=runs/a,runs/b")
    opened.get_by_label("prompt").fill("def function_")
    for both_are_one in (False, True):
        if both_are_one:
            opened.get_by_label("right").click()
            opened.get_by_role("option", name="runs/a, step 20").click()
        button = opened.get_by_role("button", name="Ask both")
        button.click()
        opened.wait_for_function("document.querySelectorAll('button[disabled]').length > 0")
        opened.wait_for_function("document.querySelectorAll('button[disabled]').length == 0", timeout=240_000)
        left, right = opened.locator(".said.assistant").all_inner_texts()
        assert left.startswith("def function_") and right.startswith("def function_")
        assert len(left) > 40 and (left == right) == both_are_one
        opened.get_by_role("button", name="Count the codes that differ").click()
        title = f"verify: runs/a, step 20 and runs/{'a' if both_are_one else 'b'}, step 20"
        text = ended(opened, title, "done").inner_text()
        assert ("compared, 0 differ" in text) == both_are_one and "ternary codes:" in text


def test_a_shelf_without_a_model_to_put_there_says_so(studio, page):
    page.goto(studio.address)
    page.goto(f"{studio.base}/shelf")
    page.get_by_role("button", name="Put a model on the shelf").click()
    page.get_by_text("There is no model yet").wait_for()
    assert page.get_by_role("button", name="Put it there").count() == 0


def test_a_model_goes_on_the_shelf_and_is_verified_renamed_removed_and_taken_back(studio, opened):
    opened.goto(f"{studio.base}/shelf")
    opened.get_by_text("The shelf is empty.").wait_for()
    opened.get_by_role("button", name="Put a model on the shelf").click()
    dialog = opened.locator(".q-dialog")
    dialog.get_by_label("name on the shelf").fill("first")
    dialog.get_by_label("notes").fill("a <b>note</b>")
    dialog.get_by_role("button", name="Put it there").click()
    entry = opened.locator(".pick", has_text="first@1")
    entry.wait_for(timeout=240_000)
    assert "a <b>note</b>" in entry.inner_text() and "runs/a/artifact" in entry.inner_text()

    entry.get_by_role("button", name="Card").click()
    dialog.get_by_text("ternary").first.wait_for()
    dialog.get_by_role("button", name="Close").click()

    entry.get_by_role("button", name="Verify").click()
    job(opened, "as it was added").wait_for(timeout=240_000)
    ended(opened, "models: first@1", "done")

    opened.locator(".pick", has_text="first@1").get_by_role("button", name="Rename").click()
    dialog.get_by_label("new name").fill("second")
    dialog.get_by_role("button", name="Rename").click()
    entry = opened.locator(".pick", has_text="second@1")
    entry.wait_for()
    entry.get_by_role("button", name="Remove").click()
    opened.get_by_text("The shelf is empty.").wait_for()
    opened.get_by_text("Removed: 1").click()
    opened.get_by_role("button", name="Take back").click()
    entry.wait_for()
    assert opened.get_by_text("Removed: 1").count() == 0

    (weights,) = (studio.root / "models").rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    entry.get_by_role("button", name="Verify").click()
    text = ended(opened, "models: second@1", "failed").inner_text()
    assert "second@1: differs" in text and "1 of 1 models differ from what was added" in text
