"""A model of the shelf is fine-tuned with MLX from a form, talked to, and fine-tuned once more."""

import re
import shutil

import pytest

from jaxlm.common.run.metrics_log import read_metrics
from tests.browser.test_buttons import jaxlm
from tests.browser.test_journey import field, state
from tests.conftest import TINY
from tests.mlxlm.small_models import save_chats, save_model, save_packed

_WORDS = {"num_train_steps": "2", "batch_size": "2", "seq_len": "64", "optimizer.learning_rate": "0.001"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tokenizer):
    """A folder with chats, and a ternary model on the shelf."""
    root, made = tmp_path_factory.mktemp("shelf"), tmp_path_factory.mktemp("made")
    save_packed(made / "packed", save_model(made / "latent", TINY, tokenizer))
    jaxlm("models", "add", made / "packed", "tiny", "--root", root / "models")
    save_chats(root / "chats.jsonl")
    return root


def test_a_model_of_the_shelf_is_finetuned_and_answers(studio, page, shelf):
    shutil.copytree(shelf, studio.root, dirs_exist_ok=True)
    page.goto(studio.address)
    page.goto(f"{studio.base}/shelf")
    page.locator(".pick", has_text="tiny@1").get_by_role("button", name="Fine-tune").click()
    page.wait_for_url(re.compile("/finetune"))
    fill_in(page)
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(700)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_label("Name of the run").fill("tuned")
    start(page)
    state(page, "done", "failed")
    assert page.locator(".chip").first.inner_text() == "done"
    run = studio.root / "runs" / "tuned"
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")][-1] == 2
    talk(page)
    fork(studio, page)
    tune_again(studio, page)


def fill_in(page):
    """Choose chats and settings; a mistake is shown at its field, before a text is chosen too."""
    page.get_by_text("data: nothing is chosen").wait_for()
    assert page.get_by_role("button", name="Fine-tune", exact=True).is_disabled()
    field(page, "optimizer.learning_rate").fill("-1")
    page.get_by_text("optimizer.learning_rate: found -1").wait_for()
    page.get_by_role("button", name="A folder or file of mine").click()
    page.get_by_role("listitem").filter(has_text="chats.jsonl").click()
    page.get_by_text("40 chats").wait_for()
    for name, value in _WORDS.items():
        field(page, name).fill(value)
    page.get_by_text("optimizer.learning_rate: found -1").wait_for(state="detached")
    page.get_by_label("method").click()
    page.get_by_role("option", name="qat").click()
    page.get_by_text("Command line").first.click()
    page.get_by_text("--num_train_steps 2").first.wait_for()
    line = page.locator(".mono", has_text="--data").first.inner_text()
    assert "--method qat" in line and "chats.jsonl" in line and "tiny/1/model" in line


def start(page):
    page.get_by_role("button", name="Fine-tune", exact=True).click()
    page.wait_for_url(re.compile("/run"))


def talk(page):
    page.get_by_role("button", name="Talk").click()
    page.wait_for_url(re.compile("/talk"))
    page.get_by_role("button", name="chat", exact=True).click()
    page.get_by_label("tokens at most").fill("8")
    page.get_by_label("Write a beginning, or a question").fill("add 3")
    page.get_by_role("button", name="Send").click()
    page.get_by_text(re.compile(r"seed \d+, \d+ characters")).wait_for(timeout=240_000)


def fork(studio, page):
    """Other settings of a fine-tuning are those of the form, with its model and text."""
    page.goto(f"{studio.base}/run?path=runs/tuned")
    page.get_by_role("button", name="Other settings").click()
    page.wait_for_url(re.compile("/finetune"))
    page.get_by_text("40 chats").wait_for()
    assert "tiny/1/model" in page.get_by_label("model", exact=True).input_value()
    assert field(page, "num_train_steps").input_value() == "2"


def tune_again(studio, page):
    """Errors that the command alone can know are those of the run, in its words."""
    page.goto(f"{studio.base}/run?path=runs/tuned")
    page.get_by_role("button", name="Fine-tune", exact=True).click()
    page.wait_for_url(re.compile("/finetune"))
    field(page, "seq_len").fill("1000")
    assert "runs/tuned/artifact" in page.get_by_label("model", exact=True).input_value()
    page.get_by_text("--seq_len 1000").first.wait_for(state="attached")
    start(page)
    state(page, "failed")
    page.get_by_text("seq_len: found 1000, expected at most the model's context").first.wait_for()
