"""Hostile templates: each ends within the limits, with one line."""

import os
import time

import pytest

from shared_tokenizer.sandbox.sandbox import TIME_S, Refusal, Sandbox

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False}


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


def rendered(sandbox: Sandbox, template: str, **variables: str) -> str | Refusal:
    (result,) = sandbox.render(template, [CHAT | variables])
    return result


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ messages[0]['role'] }}", "<s>Hiuser"),
        ("{% if true %}\n    a\n{% endif %}\n", "    a\n"),
        ("{% for m in [1, 2] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{% generation %}{{ messages | length }}{% endgeneration %}", "1"),
        (
            "{{ {'a': '<\u00e9>'} | tojson }}{{ [1] | tojson(indent=1, separators=(',', ':')) }}",
            '{"a": "<\u00e9>"}[\n 1\n]',
        ),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        (
            "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ unknown is defined }}",
            "TrueTrueFalseFalse",
        ),
        ("{{ '{0.__class__}'.format(1) }}", ""),
        ("{{ messages | pprint | striptags | wordwrap(9) | length > 1 }}", "True"),
    ],
)
def test_templates_have_what_transformers_gives_them(sandbox: Sandbox, template: str, text: str) -> None:
    assert rendered(sandbox, template, bos_token="<s>") == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system message') }}", "it says 'no system message'"),
        ("{{ missing.key }}", "it fails: UndefinedError: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "it fails: ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it fails: RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "it fails: SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "it fails: SecurityError"),
        ("{{ messages.append(1) }}", "it fails: SecurityError"),
        ("{% set x = messages.clear() %}", "it fails: SecurityError"),
        ("{% import 'os' as os %}", "it fails: TypeError: no loader"),
        ("{% include '/etc/passwd' %}", "it fails: TypeError: no loader"),
        ("{{ range(10 ** 9) | list }}", "it fails: OverflowError"),
    ],
)
def test_what_is_refused_without_an_end_of_the_process(sandbox: Sandbox, template: str, reason: str) -> None:
    rendered(sandbox, "warm")
    before = sandbox._child.process
    result = rendered(sandbox, template)
    assert isinstance(result, Refusal) and result.reason.startswith(reason) and "\n" not in result.reason
    assert sandbox._child.process is before


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ x", "found no Jinja template: line 1: unexpected end of template"),
        ("{% for %}", "found no Jinja template: line 1: "),
        ("{{ x | secret }}", "found no Jinja template: line 1: No filter named 'secret'"),
        ("{{" + "(" * 5000, "found no template that can be compiled: RecursionError"),
        ("{{ 'a' * 10 ** 9 }}", "it needs more than 512 MB of memory"),
        ("{{ '%1000000000d' % 1 }}", "it needs more than 512 MB of memory"),
        ("{% for i in range(90000) %}{{ 'a' * 100 }}{% endfor %}", r"it writes more than 1,048,\d+ characters"),
        ("{{ 10 ** 100000000 }}", "it ran for 0.5 s and had not ended"),
    ],
)
def test_templates_that_are_refused(sandbox: Sandbox, template: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"^chat template: {message}.*; name the format .* --chat_format$"):
        rendered(sandbox, template)
    assert time.monotonic() - started < 2
    assert rendered(sandbox, "{{ messages[0].content }}") == "Hi"


def test_a_long_conversation_has_the_time_that_it_takes_to_read(sandbox: Sandbox) -> None:
    text = "\u00e9" * 5_000_000
    assert rendered(sandbox, "{{ said }}", said=text) == text


def test_the_limit_on_time_starts_anew_with_each_request(sandbox: Sandbox) -> None:
    started = time.monotonic()
    while time.monotonic() - started < 1.5 * TIME_S:
        assert rendered(sandbox, "{% for i in range(99999) %}{% set x = i * i %}{% endfor %}") == ""


def test_the_process_ends_with_its_sandbox() -> None:
    sandbox = Sandbox()
    rendered(sandbox, "a")
    process = sandbox._child.process
    assert process is not None and process.poll() is None
    del sandbox
    assert process.returncode is not None


def test_a_process_that_was_ended_is_started_again(sandbox: Sandbox) -> None:
    rendered(sandbox, "a")
    before = sandbox._child.process
    assert before is not None
    before.kill()
    before.wait()
    assert rendered(sandbox, "a") == "a" and sandbox._child.process is not before


def test_a_process_that_ends_before_its_reply_is_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered(sandbox, "a")
    assert sandbox._child.process is not None
    monkeypatch.setattr(sandbox._child.process, "poll", lambda: None)
    sandbox._child.process.kill()
    with pytest.raises(ValueError, match=r"^chat template: its process ended with SIGKILL, expected a text; name the"):
        rendered(sandbox, "a")


def test_an_interrupt_from_the_terminal_is_not_for_the_process(sandbox: Sandbox) -> None:
    rendered(sandbox, "a")
    assert sandbox._child.process is not None and os.getpgid(sandbox._child.process.pid) != os.getpgid(0)


def test_an_interpreter_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable, reason in (("/bin/false", "exit code 1"), ("/missing", "No such file")):
        monkeypatch.setattr("sys.executable", executable)
        with pytest.raises(ValueError, match=f"the process to run it did not start: .*{reason}"):
            rendered(Sandbox(), "a")
