"""Twenty kills of the studio during a training: the training does not notice."""

import json
import time
import urllib.request

from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.studio import Draft, Studio
from tests.browser.conftest import ROOT

_KILLS = 20


def test_twenty_kills_leave_no_gap(studio, tmp_path):
    text = "".join(f"def function_{i}(a, b):\n    return a + {i} * b\n\n" for i in range(3000))
    (studio.root / "mine.txt").write_text(text)
    draft = Draft(name="run", input=[str(studio.root / "mine.txt")], vocab_size="320")
    draft.prepare["document_characters"] = "2000"
    draft.train |= {"num_train_steps": "600", "batch_size": "1", "seq_len": "32", "checkpoint_every_steps": "100"}
    job = Studio(Folders(studio.root), ROOT).start(draft)
    for number in range(_KILLS):
        studio.kill()
        studio.start()
        request = urllib.request.Request(studio.address)
        with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(request, timeout=10) as answer:
            assert answer.status == 200, number
    while job.state == "running":
        time.sleep(0.5)
    assert job.state == "done", job.log.read_text()[-2000:]
    steps = [line["step"] for line in read_metrics(studio.root / "runs" / "run" / "metrics.jsonl")]
    assert steps == sorted({1, *range(10, 601, 10)}), json.dumps(steps)
    assert (studio.root / "runs" / "run" / "artifact" / "MANIFEST.sha256").is_file()
