"""Whole runs by rewards: they learn, resume to the bit, and keep their checkpoint when a verifier fails."""

import dataclasses
import json

import jax
import pytest

from jaxlm.checkpoints.checkpoint import newest_complete_step
from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.load import load_model
from jaxlm.model.language_model import init_params
from jaxlm.rl.rl_config import RLConfig
from jaxlm.rl.rl_trainer import train_rl
from shared_tokenizer.manifest import verify_manifest
from tests.conftest import TINY

pytestmark = pytest.mark.whole

VERIFIER = """
import pathlib
calls = 0

def early(prompt, answer, row):
    return 1.0 if answer and ord(answer[0]) < 80 else 0.0

def fails_later(prompt, answer, row):
    global calls
    calls += 1
    return early(prompt, answer, row) if calls <= row["calls"] else float("nan")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a model, prompts and verifiers."""
    path = tmp_path_factory.mktemp("rl")
    (path / "tokenizer").mkdir()
    tokenizer.save(path / "tokenizer")
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size, num_layers=1)
    params = init_params(config, jax.random.key(0))
    export_artifact(path / "model", config, params, "latent", tokenizer_dir=path / "tokenizer")
    (path / "rewards.py").write_text(VERIFIER)
    rows = [{"prompt": f"def f{number}", "calls": 8 * 4 + 10} for number in range(10)]
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(place, name, **settings):
    settings = {
        "init_from": str(place / "model"),
        "prompts": str(place / "prompts.jsonl"),
        "verifier": f"{place / 'rewards.py'}:early",
        "prompts_per_step": 2,
        "samples_per_prompt": 8,
        "max_tokens": 4,
        "num_train_steps": 4,
        "eval_every_steps": 2,
        "eval_samples": 2,
        "checkpoint_every_steps": 2,
        "optimizer": OptimizerConfig(learning_rate=3e-2, warmup_steps=0, weight_decay=0.0),
    } | settings
    return RLConfig(output_dir=str(place / name), **settings)


def weights_of(place, name):
    return (place / name / "artifact" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["grpo", "expert_iteration"])
def test_a_run_learns_a_token_and_resumes_to_the_bit(place, method, capsys):
    settings = config(place, method, method=method, num_train_steps=24, eval_every_steps=12, checkpoint_every_steps=12)
    assert train_rl(settings)
    printed = capsys.readouterr().out
    assert "importance ratio of sampler and trainer: 1 within" in printed and "(reward " in printed
    lines = read_metrics(place / method / "metrics.jsonl")
    rewards = [line["reward/mean"] for line in lines]
    assert sum(rewards[-4:]) / 4 > 0.7 > 0.2 > rewards[0]
    names = {"reward/pass@1", "reward/pass@8", "reward/answer_tokens", "train/entropy", "ternary/flip_rate"}
    assert names <= set(lines[0]) and {"val/pass@2", "val/reward"} <= set(lines[11])
    assert all(line["train/ratio_error"] < 1e-4 for line in lines)
    for name in ("artifact", "tokenizer"):
        verify_manifest(place / method / name)
    assert (place / method / "reward.png").is_file() and (place / method / "samples.txt").is_file()
    load_model(place / method)
    before = weights_of(place, method)
    (place / method / "checkpoints" / "24" / "MANIFEST.sha256").unlink()
    assert train_rl(dataclasses.replace(settings, resume=True))
    assert "training from step 12 to 24" in (place / method / "run.log").read_text()
    assert weights_of(place, method) == before
    again = read_metrics(place / method / "metrics.jsonl")
    assert [line["reward/mean"] for line in again] == rewards


def test_a_verifier_that_gives_no_number_ends_the_run_and_keeps_its_checkpoint(place):
    verifier = f"{place / 'rewards.py'}:fails_later"
    settings = config(place, "nan", verifier=verifier, eval_every_steps=0, checkpoint_every_steps=1, kl_weight=0.1)
    with pytest.raises(ValueError, match=r"verifier: found 'nan' for the answer .*, expected a finite number"):
        train_rl(settings)
    assert newest_complete_step(place / "nan" / "checkpoints", print) == 2
    distances = [line["train/kl"] for line in read_metrics(place / "nan" / "metrics.jsonl")]
    assert distances[0] == pytest.approx(0, abs=1e-6) and distances[1] > 1e-4
    assert "ended by an error: verifier: found" in (place / "nan" / "run.log").read_text()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt: found 1, expected more with grpo"),
        ({"method": "expert_iteration", "kl_weight": 0.1}, "kl_weight: has no effect with expert_iteration"),
        ({"grad_accumulation_steps": 3}, "grad_accumulation_steps: found 3, expected a divisor of batch_size 16"),
        ({"max_tokens": 100}, "max_tokens: found 100 after prompts of up to"),
        ({"prompts_per_step": 11}, "prompts_per_step: found 11, expected at most 8"),
        ({"init_from": "missing"}, "missing"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(place, settings, reason):
    with pytest.raises((ValueError, OSError), match=reason):
        train_rl(config(place, "refused", **settings))
    assert not (place / "refused").exists()


@pytest.mark.parametrize("game", ["tic_tac_toe", "guess_the_rule"])
def test_a_model_plays_a_game_with_itself(place, game, capsys):
    settings = {"task": game, "prompts": None, "verifier": None, "samples_per_prompt": 2, "num_train_steps": 1}
    assert train_rl(config(place, game, model={"max_seq_len": 128}, **settings))
    assert "(rewards " in capsys.readouterr().out
    (line,) = read_metrics(place / game / "metrics.jsonl")
    assert 1 <= line["game/turns"] <= 9 and 0 <= line["val/reward"] <= 1
