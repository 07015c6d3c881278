"""From an empty folder to a model that answers, in a browser, with the studio killed on the way."""

import json
import re
import subprocess
import sys
import time

from jaxlm.common.run.metrics_log import read_metrics
from shared_tokenizer.manifest import verify_manifest
from tests.browser.conftest import DemoProcess

_STEPS = 400
_QUESTION = "Write a beginning, or a question"
_WORDS = {
    "num_train_steps": str(_STEPS),
    "batch_size": "2",
    "seq_len": "64",
    "eval_every_steps": "50",
    "sample_every_steps": "50",
    "checkpoint_every_steps": "20",
}


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.1)


def state(page, *words):
    page.wait_for_function(
        "words => words.includes(document.querySelector('.chip')?.innerText)", arg=list(words), timeout=900_000
    )


def field(page, name):
    return page.locator(f'[data-setting="{name}"]')


def test_a_newcomer_trains_stops_talks_converts_and_shows(studio, page, tmp_path):
    run = studio.root / "runs" / "mine"
    page.goto(studio.address)
    assert "token" not in page.url
    choose_a_folder(studio, page)
    train(page)
    talk_while_it_trains(page, run)
    reload_and_kill_the_studio(studio, page, run)
    stop_and_keep_the_model(studio, page, run)
    go_on_to_the_end(page, run)
    convert(studio, page)
    compare_with_the_commands_alone(studio, run, tmp_path)
    put_it_on_the_shelf(studio, page)
    show_it_to_others(studio, page, tmp_path)


def choose_a_folder(studio, page):
    texts = studio.root / "my_texts"
    texts.mkdir()
    for number in range(60):
        text = "".join(f"def function_{number}_{i}(a, b):\n    return a + {i} * b\n\n" for i in range(40))
        (texts / f"text{number}.txt").write_text(text)
    page.get_by_role("button", name="A folder or file of mine").click()
    page.get_by_role("listitem").filter(has_text="my_texts").click()
    page.get_by_text("text0.txt").first.wait_for()
    page.get_by_role("button", name="This folder").click()
    page.get_by_text("60 files").wait_for()


def train(page):
    """Start a tiny training; a mistake is shown at its field."""
    page.locator(".steps .pick", has_text="Tokenizer").click()
    page.get_by_label("vocab_size").fill("320")
    page.locator(".steps .pick", has_text="Model").click()
    field(page, "num_train_steps").fill("many")
    page.get_by_text("num_train_steps: found many, expected a whole number").first.wait_for()
    for name, value in _WORDS.items():
        field(page, name).fill(value)
    page.get_by_text("num_train_steps: found many").wait_for(state="detached")
    page.get_by_label("Name of the run").fill("mine")
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_url(re.compile("/run"))
    state(page, "training")


def talk_while_it_trains(page, run):
    wait_for(lambda: (run / "checkpoints" / "20").is_dir())
    page.get_by_role("button", name="Talk").click()
    page.wait_for_url(re.compile("/talk"))
    page.get_by_label("tokens at most").fill("24")
    ask(page, _QUESTION)


def ask(page, name):
    page.get_by_label(name).fill("def function_")
    page.get_by_role("button", name="Send").click()
    page.wait_for_function(
        "document.querySelector('.said.assistant')?.innerText.length > 'def function_'.length", timeout=900_000
    )


def reload_and_kill_the_studio(studio, page, run):
    """Reload, kill the studio, start it again: the training goes on, and so does the tab."""
    page.goto(f"{studio.base}/run?path=runs/mine")
    page.reload()
    state(page, "training")
    studio.kill()
    steps = len(read_metrics(run / "metrics.jsonl"))
    wait_for(lambda: len(read_metrics(run / "metrics.jsonl")) > steps)
    studio.start()
    page.reload()
    state(page, "training")


def stop_and_keep_the_model(studio, page, run):
    page.get_by_role("button", name="Stop and save").click()
    page.get_by_text("Saved. Keep the model under a name?").wait_for(timeout=120_000)
    page.get_by_label("Name of the model").fill("half")
    page.get_by_role("button", name="Make the model").click()
    state(page, "stopped")
    wait_for(lambda: (studio.root / "models" / "half" / "MANIFEST.sha256").is_file(), seconds=900)
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir())
    assert saved < _STEPS


def go_on_to_the_end(page, run):
    page.get_by_role("button", name="Continue").first.click()
    page.locator(".q-dialog").get_by_role("button", name="Continue").click()
    state(page, "training")
    state(page, "done")
    verify_manifest(run / "artifact")


def convert(studio, page):
    page.get_by_role("button", name="Convert").click()
    page.get_by_label("Name of the model").fill("whole")
    page.get_by_role("button", name="Make the model").click()
    whole = studio.root / "models" / "whole" / "MANIFEST.sha256"
    wait_for(whole.is_file, seconds=900)
    page.get_by_text("convert: to packed: whole").wait_for()
    assert whole.read_bytes()  # the same codes in 2 bits


def compare_with_the_commands_alone(studio, run, tmp_path):
    """Metrics have no gap, and the model is that of the same commands without a studio."""
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl")]
    assert set(steps) >= {1, *range(10, _STEPS + 1, 10)}
    assert (run / "samples.txt").is_file()
    records = [json.loads(path.read_text()) for path in (studio.root / ".studio" / "jobs").glob("*/job.json")]
    (record,) = [record for record in records if record["title"] == "mine"]
    words = record["commands"][1][1:]
    words[words.index("--output_dir") + 1] = str(tmp_path / "straight")
    subprocess.run([sys.executable, *words], cwd=record["cwd"], check=True, capture_output=True)
    straight = (tmp_path / "straight" / "artifact" / "MANIFEST.sha256").read_bytes()
    assert straight == (run / "artifact" / "MANIFEST.sha256").read_bytes()


def put_it_on_the_shelf(studio, page):
    page.goto(f"{studio.base}/shelf")
    page.get_by_role("button", name="Put a model on the shelf").click()
    page.get_by_label("name on the shelf").fill("finished")
    page.get_by_role("button", name="Put it there").click()
    page.get_by_text("finished@1", exact=True).first.wait_for()


def show_it_to_others(studio, page, tmp_path):
    shelf = {"JAXLM_MODELS": str(studio.root / "models")}
    demo = DemoProcess("finished@1", tmp_path / "demo.log", environment=shelf)
    try:
        demo.start()
        page.goto(demo.address)
        assert page.title() == "finished@1"
        ask(page, "Write a beginning")
    finally:
        demo.kill()
