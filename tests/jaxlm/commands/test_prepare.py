"""The command that `jaxlm prepare` prints to go on with fits what was prepared."""

import json

import pytest

from jaxlm.commands.prepare import main
from shared_tokenizer.preparation.prepare_config import PrepareConfig

TEXT = {"text": "def add(a, b): return a + b"}
CHAT = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "a + b"}]}
PAIR = {"prompt": "add", "chosen": "a + b", "rejected": "b"}


@pytest.mark.parametrize(
    "row, has_tokenizer, expected",
    [
        (TEXT, True, []),
        (CHAT, True, ["--objective", "sft", "--init_from", "MODEL"]),
        (CHAT, False, ["--objective", "sft"]),
        (PAIR, True, ["--objective", "orpo", "--init_from", "MODEL"]),
    ],
)
def test_the_next_command_trains_on_what_was_prepared(row, has_tokenizer, expected, tokenizer, tmp_path, capsys):
    rows = "".join(json.dumps(row).replace("add", f"add {number}") + "\n" for number in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    made = {"tokenizer": str(tmp_path / "tokenizer")} if has_tokenizer else {"vocab_size": 294}
    source, shards = str(tmp_path / "rows.jsonl"), str(tmp_path / "shards")
    settings = {"val_fraction": 0.3, "num_workers": 1} | made
    main(PrepareConfig(input=[source], output_dir=shards, **settings))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next:")]
    words = line.split()
    assert words[words.index("train") + 1 :] == [*expected, "--data_dir", shards, "--output_dir", "runs/shards"]
