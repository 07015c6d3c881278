import asyncio
import json

import pytest

from jaxlm.studio.processes.jobs import Command, Jobs
from jaxlm.studio.processes.model_server import Choice, ModelServers, Talker, ask, checkpoint_view
from tests.jaxlm.studio.processes.test_jobs import Words
from tests.jaxlm.studio.reading.test_runs import make_run

# Stands for `jaxlm server`: it prints its address and streams what it was asked.
_SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_right = self.headers["authorization"] == "Bearer " + os.environ["MLXLM_API_KEY"]
        if not is_right or asked.get("prompt") == "refuse":
            body = json.dumps({"error": {"message": "prompt: found refuse, expected another"}}).encode()
            self.send_response(400); self.end_headers(); self.wfile.write(body); return
        self.send_response(200); self.end_headers()
        for piece in ("seed ", str(asked["seed"]), " <b>", *asked.get("stop", [])):
            choice = {"text": piece} if "prompt" in asked else {"delta": {"content": piece}}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
        self.wfile.write(b"data: [DONE]\\n\\n")
server = HTTPServer(("127.0.0.1", 0), Handler)
print(f"mine: http://127.0.0.1:{server.server_port}/v1\\ncurl .../completions", flush=True)
server.serve_forever()
"""


class FakeServers(ModelServers):
    """Servers of a program that stands for `jaxlm server`."""

    program = _SERVER

    def _command(self, talker: Talker) -> Command:
        return Words("server", ("-c", self.program))


@pytest.fixture
def servers(tmp_path):
    found = FakeServers(Jobs(tmp_path / "jobs"), tmp_path, tmp_path)
    yield found
    found.close()


async def answer(servers, talker, asked, choice):
    server = await servers.open(talker)
    return "".join([piece async for piece in ask(server, asked, choice)])


def test_a_model_is_opened_once_and_answers(servers, tmp_path):
    async def talk():
        talker = Talker(tmp_path / "model")
        assert not servers.is_open(talker)
        texts = await asyncio.gather(*(answer(servers, talker, "Once", Choice(seed=7)) for _ in range(3)))
        chat = await answer(servers, talker, [{"role": "user", "content": "Hi"}], Choice(seed=8))
        stopped = await answer(servers, talker, "Once", Choice(seed=9, stop=("x", "y")))
        with pytest.raises(ValueError, match="prompt: found refuse"):
            await answer(servers, talker, "refuse", Choice())
        return texts, chat, stopped, servers.is_open(talker)

    texts, chat, stopped, is_open = asyncio.run(talk())
    assert texts == ["seed 7 <b>"] * 3 and chat == "seed 8 <b>" and stopped == "seed 9 <b>xy" and is_open
    assert len(Jobs(tmp_path / "jobs").all()) == 1


def test_a_server_that_does_not_start_says_why(servers, tmp_path):
    servers.program = "print('error: model: found nothing, expected a model'); raise SystemExit(2)"
    with pytest.raises(ValueError, match="model: found nothing, expected a model"):
        asyncio.run(servers.open(Talker(tmp_path / "model")))


def test_a_view_of_a_checkpoint_has_one_step(tmp_path):
    run = make_run(tmp_path, "runs/first", step=10)
    (run / "checkpoints" / "20").mkdir()
    (run / "tokenizer").mkdir()
    view = checkpoint_view(run, 10, tmp_path / "views")
    assert [path.name for path in (view / "checkpoints").iterdir()] == ["10"]
    assert (view / "config.yaml").is_file() and (view / "tokenizer").is_dir()
    assert json.loads((view / "identity.json").read_text())
    assert checkpoint_view(run, 10, tmp_path / "views") == view
    with pytest.raises(ValueError, match="has no checkpoint of step 30"):
        checkpoint_view(run, 30, tmp_path / "views")
