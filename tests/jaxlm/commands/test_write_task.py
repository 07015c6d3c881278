"""The files of a task: texts without held-out prompts, and prompts that train-rl takes back."""

import json

import pytest

from jaxlm.commands.write_task import GAMES_BY_CHANCE, WriteTaskConfig, main
from jaxlm.common.rewards.open_task import TaskSettings, open_task, read_rows


def test_files_of_a_task(tmp_path, capsys):
    main(WriteTaskConfig(task="addition", output_dir=str(tmp_path / "sums")))
    assert f"{tmp_path / 'sums' / 'texts.jsonl'}: 7,900 rows" in capsys.readouterr().out
    texts = (tmp_path / "sums" / "texts.jsonl").read_text().splitlines()
    held_out = read_rows(tmp_path / "sums" / "held_out.jsonl")
    assert len(held_out) == 200 and len(texts) == 7900
    assert not any(row["prompt"] in text for row in held_out[:5] for text in texts)
    ours = open_task(
        TaskSettings(
            prompts=str(tmp_path / "sums" / "prompts.jsonl"),
            held_out_prompts=str(tmp_path / "sums" / "held_out.jsonl"),
            verifier="exact",
        )
    )
    assert ours.fingerprint == open_task(TaskSettings(task="addition")).fingerprint


def test_a_game_is_written_as_moves_by_chance(tmp_path):
    main(WriteTaskConfig(task="tic_tac_toe", output_dir=str(tmp_path / "moves")))
    texts = [row["text"] for row in map(json.loads, (tmp_path / "moves" / "texts.jsonl").read_text().splitlines())]
    assert len(texts) > 4 * GAMES_BY_CHANCE
    for text in texts[:100]:
        board, field = text.split()[0].replace("/", ""), text.split(":")[1]
        assert board[int(field) - 1] == "."
    assert [path.name for path in (tmp_path / "moves").iterdir()] == ["texts.jsonl"]
    with pytest.raises(ValueError, match="num_held_out: has no effect with the game tic_tac_toe"):
        WriteTaskConfig(task="tic_tac_toe", num_held_out=3, output_dir="out")


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(ValueError, match="task: found 'sortin'; did you mean sorting"):
        main(WriteTaskConfig(task="sortin", output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
