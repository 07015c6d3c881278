"""The demo in a real browser: it answers, also behind a prefix, shows the line, and has nothing else."""

import contextlib
import socket
import urllib.error
import urllib.request

import pytest

from tests.browser.conftest import DemoProcess
from tests.browser.prefix_proxy import prefix_proxy
from tests.browser.test_pages import HOSTILE
from tests.mlxlm.server.served_models import save_model

_PREFIX = "/some/prefix"


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", tokenizer, "hybrid")


@contextlib.contextmanager
def running(model, folder, *words):
    """Run a demo of a model that chats."""
    demo = DemoProcess(model, folder / "demo.log", "--max_tokens", "200", "--max_prompt_chars", "400", *words)
    try:
        demo.start()
        yield demo
    finally:
        demo.kill()


@pytest.fixture(scope="module")
def demo(model, tmp_path_factory):
    """A demo that several tests share: it keeps nothing."""
    with running(model, tmp_path_factory.mktemp("demo")) as found:
        yield found


def ask(page, text, mode="chat", tokens=12):
    if not page.get_by_label("tokens at most").is_visible():
        page.get_by_text("Settings").click()
    page.get_by_role("button", name=mode, exact=True).click()
    page.get_by_label("tokens at most").fill(str(tokens))
    page.get_by_label("Write a question").fill(text)
    page.get_by_text("characters").wait_for(state="detached")  # of the answer before
    page.get_by_role("button", name="Send").click()


def wait_for_answer(page):
    page.get_by_text("characters").wait_for()
    return page.locator(".said.assistant").last.inner_text()


def status(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_chats_and_continues_and_shows_markup_as_text(demo, page):
    page.goto(demo.address)
    ask(page, HOSTILE)
    wait_for_answer(page)
    assert page.locator(".said.user").inner_text() == HOSTILE
    ask(page, HOSTILE, mode="continue a text")
    assert wait_for_answer(page).startswith(HOSTILE)
    assert page.title() == "tiny" and page.locator("img[src=x]").count() == 0


def test_a_seed_repeats_an_answer_and_a_stop_ends_it(demo, page):
    page.goto(demo.address)
    answers, letter = [], ""
    for _ in range(4):
        page.get_by_role("button", name="New").click()
        ask(page, "ab", mode="continue a text", tokens=60)
        answers.append(wait_for_answer(page).removeprefix("ab"))
        page.get_by_label("seed").fill("7")
        if len(answers) == 3:
            letter = next(each for each in answers[2] if each.isascii() and each.isalnum())
            page.get_by_label("stop at").fill(letter)
    assert answers[1] == answers[2]
    assert answers[3].strip() == answers[2].partition(letter)[0].strip()


def test_limits_hold_where_a_browser_passes_over_them(demo, page):
    page.goto(demo.address)
    page.get_by_label("Write a question").evaluate("element => element.removeAttribute('maxlength')")
    ask(page, "x" * 401, tokens=201)
    page.get_by_text("text: found 401 characters, expected at most 400").wait_for()
    assert page.get_by_label("tokens at most").input_value() == "200"
    assert page.locator(".said.assistant").count() == 0


def test_people_stand_in_a_line(demo, browser):
    pages = []
    for _ in range(3):
        pages.append(browser.new_context().new_page())
        pages[-1].goto(demo.address)
    ask(pages[0], "Hi")
    wait_for_answer(pages[0])  # the model is loaded
    pages[0].get_by_role("button", name="New").click()
    with demo.stopped_children():  # the model thinks until all three have asked
        for page in pages:
            ask(page, "Hi", tokens=200)
        pages[2].get_by_text("2 before you").wait_for()
        pages[1].get_by_role("button", name="Stop").click()
        pages[1].get_by_text("stopped").wait_for()
    for page in (pages[0], pages[2]):
        wait_for_answer(page)
    assert [page.locator(".said.assistant").count() for page in pages] == [1, 0, 1]
    for page in pages:
        page.context.close()


@pytest.mark.parametrize("takes_off", [True, False])
def test_it_works_behind_a_prefix(model, tmp_path, page, takes_off):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ("--prefix", _PREFIX, "--allowed_hosts", f"127.0.0.1:{port}")
    with (
        running(model, tmp_path, *words) as demo,
        prefix_proxy(_PREFIX if takes_off else "", port, demo.port),
    ):
        page.goto(f"http://127.0.0.1:{port}{_PREFIX}/")
        ask(page, "Hello")
        wait_for_answer(page)
        assert page.locator(".said.user").inner_text() == "Hello"


def test_there_is_one_page_and_no_file(demo):
    assert status(demo.address) == 200
    for path in ("runs", "talk", "shelf", "jobs", "docs", "openapi.json", "model/config.json", "..%2f..%2fetc/passwd"):
        assert status(f"{demo.base}/{path}") == 404, path
    assert status(demo.address, Host="evil.example") == 403
    assert status(demo.address, Origin="http://evil.example") == 403


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_no_wider_than_its_window(demo, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(demo.address)
    ask(page, "word" * 30, mode="continue a text")
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
