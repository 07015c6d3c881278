"""Programs of others talk to the server: lm-evaluation-harness, openai-python, curl, and requests as Open WebUI sends.

lm-evaluation-harness needs aiohttp, with which a local Ray cluster does not start: `make witness` puts what only its
client needs into a folder of its own.
"""

import json
import os
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import openai
import pytest

from mlxlm.load import load_model
from mlxlm.score import score
from tests.mlxlm.server.served_models import CONTEXT, NAME, running, save_model
from tests.pages import read_page, shell_lines

CLIENT = Path(sys.prefix) / "lm-eval-client"
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}
QUESTIONS = ("def add(a, b):", "return a +", "import", "for x in range(", "if a ==", "while")


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / NAME, tokenizer)


@pytest.fixture(scope="module")
def port(place):
    model, tokenizer = load_model(place)
    with running(model, tokenizer, api_key="secret", max_queue=64) as port:
        yield port


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks with local rows, as YAML, of which JSON is a part."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": question, "choices": [" b", " 1", ":\n    pass"], "answer": number % 3}
        for number, question in enumerate(QUESTIONS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test"} | data | task))
    return folder


def run_harness(tasks, port, output, *, arguments):
    """Return the samples of each task, in the order of its rows."""
    if not (CLIENT / "aiohttp").is_dir():
        pytest.skip("lm-evaluation-harness's client needs packages that `make witness` installs")
    url = f"http://127.0.0.1:{port}/v1/completions"
    words = ["--model", "local-completions", "--tasks", ",".join(TASKS), "--include_path", str(tasks)]
    words += ["--model_args", f"base_url={url},model={NAME},max_length={CONTEXT},{arguments}"]
    words += ["--output_path", str(output), "--log_samples", "--batch_size", "4"]
    folders = os.pathsep.join([str(CLIENT), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "hub")}
    environment = os.environ | offline | {"PYTHONPATH": folders, "OPENAI_API_KEY": "secret"}
    command = [sys.executable, "-m", "lm_eval", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in TASKS:
        (path,) = output.rglob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        found[name] = [
            (sample["arguments"], sample["resps"]) for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ]
    return found


def test_lm_evaluation_harness_scores_alike_with_both_of_its_tokenizers(place, port, tasks, tmp_path):
    remote = run_harness(tasks, port, tmp_path / "remote", arguments="tokenizer_backend=remote,auth_token=secret")
    local = f"tokenizer_backend=huggingface,tokenizer={place},tokenized_requests=True"
    assert run_harness(tasks, port, tmp_path / "local", arguments=local) == remote
    model, tokenizer = load_model(place)
    for (arguments, answers), question in zip(remote["choose"], QUESTIONS, strict=True):
        for argument, ((answer,),) in zip(arguments.values(), zip(answers, strict=True), strict=True):
            context, continuation = argument["arg_0"], argument["arg_1"]
            assert context == question
            ids, given = tokenizer.encode(context + continuation), tokenizer.encode(context)
            (scores,) = score(model, [ids], [len(given)])
            assert float(answer[0]) == pytest.approx(float(scores.logprobs.sum()), abs=1e-3)
            assert (str(answer[1]) == "True") == bool(scores.is_greedy.all())
    for (_, ((answer,),)), question in zip(remote["roll"], QUESTIONS, strict=True):
        (scores,) = score(model, [tokenizer.encode_prompt(question)], [1])
        assert float(answer if isinstance(answer, str | float) else answer[0]) == pytest.approx(
            float(scores.logprobs.sum()), abs=1e-3
        )
    assert all(isinstance(answer, str) for _, ((answer,),) in remote["write"])


def test_openai_python_streams_and_reports_log_probabilities(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0) as api:
        asked = {"model": NAME, "messages": [{"role": "user", "content": "add"}], "temperature": 0, "max_tokens": 6}
        whole = api.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
        entries = whole.logprobs.content
        assert len(entries) == 6 and all(len(entry.top_logprobs) == 2 for entry in entries)
        assert [entry.top_logprobs[0].logprob for entry in entries] == [entry.logprob for entry in entries]
        streamed = [chunk.choices[0] for chunk in api.chat.completions.create(**asked, logprobs=True, stream=True)]
        assert "".join(choice.delta.content or "" for choice in streamed) == whole.message.content
        found = [entry for choice in streamed if choice.logprobs for entry in choice.logprobs.content]
        np.testing.assert_allclose([entry.logprob for entry in found], [entry.logprob for entry in entries], atol=1e-5)
        scored = api.completions.create(model=NAME, prompt="def add", echo=True, logprobs=1, max_tokens=0).choices[0]
        assert scored.logprobs.token_logprobs[0] is None and max(scored.logprobs.token_logprobs[1:]) < 0


def test_what_open_webui_sends_is_answered(tokenizer, place):
    model, _ = load_model(place)
    log = json.loads((Path(__file__).parent / "open_webui_requests.json").read_text("utf-8"))
    host = "host.docker.internal"
    with running(model, tokenizer, api_key="secret", hosts=[host]) as port:
        for entry in log:
            body = json.dumps(entry["body"]).encode() if "body" in entry else None
            headers = {"Content-Type": "application/json", "Authorization": "Bearer secret", "Host": f"{host}:{port}"}
            headers |= {"X-OpenWebUI-User-Name": "Ada", "X-OpenWebUI-User-Role": "admin"}
            url = f"http://127.0.0.1:{port}{entry['path']}"
            request = urllib.request.Request(url, body, headers, method=entry["method"])
            with urllib.request.urlopen(request, timeout=60) as answered:
                text = answered.read().decode()
            if entry.get("body", {}).get("stream"):
                lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
                assert lines.pop() == "[DONE]", entry["what"]
                *_, usage = events = [json.loads(line) for line in lines]
                pieces = [event["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
                assert "".join(pieces) and usage["usage"]["completion_tokens"] > 0, entry["what"]
            elif body:
                assert json.loads(text)["choices"][0]["message"]["content"], entry["what"]
            else:
                assert [found["id"] for found in json.loads(text)["data"]] == [NAME]


def curl_lines():
    return [line for page in ("README.md", "docs/server.md") for line in shell_lines(read_page(page)) if "curl" in line]


def test_pages_show_curl():
    assert len(curl_lines()) >= 3


@pytest.mark.parametrize("line", curl_lines())
def test_curl_does_as_the_pages_say(port, line):
    """The commands as they stand, but for the port and the name of the model."""
    words = [word.replace(":8080/", f":{port}/").replace('"mine"', f'"{NAME}"') for word in shlex.split(line)]
    words = [word.replace("$MLXLM_API_KEY", "secret") for word in words]
    done = subprocess.run([*words, "--silent", "--show-error", "--fail-with-body"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
