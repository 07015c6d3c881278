"""The file of completions, with a model that needs no framework."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from jaxlm.common.generation.completions import CompletingModel, complete_prompts, seed_of
from jaxlm.common.sampling import GenerateConfig

ROWS = [{"prompt": "def", "id": "a"}, {"prompt": "x =", "id": "\ud800"}, {"nothing": 1}, {"prompt": "é", "id": "c"}]


class Killed(Exception):
    pass


class FakeModel:
    """Continues a prompt of n tokens by the text of its seed, then the end where the seed is even."""

    def __init__(self, tokenizer, kill_after=None):
        self.tokenizer, self.kill_after, self.asked = tokenizer, kill_after, []

    def continue_texts(self, texts, sampling, add):
        for count, number in enumerate(reversed(range(len(texts)))):
            if count == self.kill_after:
                raise Killed
            text = texts[number]
            self.asked.append(text.seed)
            for token in [*self.tokenizer.encode(str(text.seed)), self.tokenizer.eos_id][: text.max_tokens]:
                if add(number, token):
                    break
            yield number

    def completing(self, fingerprint="weights"):
        tokenizer = self.tokenizer
        return CompletingModel(
            tokenizer, tokenizer.vocab_size, 64, fingerprint, tokenizer.stop_ids, self.continue_texts
        )


@pytest.fixture
def config(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return GenerateConfig(
        model="none", prompts=str(tmp_path / "prompts.jsonl"), output=str(tmp_path / "out.jsonl"), num_samples=2
    )


def complete(config, model, fingerprint="weights"):
    console = Console(width=200, record=True, quiet=False, markup=False, highlight=False)
    with open("/dev/null", "w") as console.file:
        complete_prompts(config, model.completing(fingerprint), console)
    return console.export_text()


def read(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_rows_come_in_the_order_of_the_prompts_with_their_keys_samples_and_seeds(config, tokenizer, tmp_path):
    said = complete(config, FakeModel(tokenizer))
    found = read(config.output)
    assert [(row["line"], row.get("sample"), row.get("id")) for row in found] == [
        (1, 0, "a"),
        (1, 1, "a"),
        (2, 0, "\ud800"),
        (2, 1, "\ud800"),
        (3, None, None),
        (4, 0, "c"),
        (4, 1, "c"),
    ]
    assert found[4] == {"line": 3, "error": found[4]["error"], "row": {"nothing": 1}}
    assert "line 3: found the keys" in said and "1 of 4 rows cannot be continued" in said
    for row in found[:4] + found[5:]:
        assert row["completion"] == str(row["seed"]) and row["finish_reason"] == "stop"
        assert row["tokens"] == len(tokenizer.encode(str(row["seed"]))) + 1
    assert len({row["seed"] for row in found if "seed" in row}) == 6
    assert found[6]["seed"] == seed_of(0, 3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]


def test_a_killed_command_goes_on_where_it_was_and_writes_the_same(config, tokenizer, tmp_path):
    whole = tmp_path / "whole.jsonl"
    complete(GenerateConfig(**{**vars(config), "output": str(whole)}), FakeModel(tokenizer))
    with pytest.raises(Killed):
        complete(config, FakeModel(tokenizer, kill_after=4))
    part = tmp_path / "out.jsonl.part"
    assert not (tmp_path / "out.jsonl").exists()
    with part.open("a") as file:
        file.write('{"of": [0, 0], "completion": "torn')
    again = FakeModel(tokenizer)
    assert "4 texts are done already" in complete(config, again)
    assert len(again.asked) == 2
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes() and not part.exists()


def test_what_belongs_to_other_weights_begins_anew(config, tokenizer):
    with pytest.raises(Killed):
        complete(config, FakeModel(tokenizer, kill_after=4))
    again = FakeModel(tokenizer)
    assert "belongs to another model, prompts or settings: begun anew" in complete(config, again, "others")
    assert len(again.asked) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a"}, "prompt: found it and prompts, expected one of them"),
        ({"output": None}, "output: found none, expected a file for the texts of prompts"),
        ({"temperature": 0.0}, "num_samples: found 2 at temperature 0, where all are the same"),
        ({"prompts": None}, "num_samples: has no effect on a single prompt"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**{**vars(config), **settings})


def test_an_output_that_cannot_be_written_is_refused_before_any_text(config, tokenizer, tmp_path):
    model = FakeModel(tokenizer)
    with pytest.raises(ValueError, match="expected a file in a directory that exists"):
        complete(GenerateConfig(**{**vars(config), "output": str(tmp_path / "no" / "out.jsonl")}), model)
    assert not model.asked
