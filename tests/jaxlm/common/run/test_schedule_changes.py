from dataclasses import asdict, replace

import pytest

from jaxlm.common.run.optimizer_config import OptimizerConfig, learning_rate, learning_rate_pieces
from jaxlm.common.run.run_config import RunConfig
from jaxlm.common.run.schedule_changes import log_warmup, with_schedule_changes


def config(steps, schedule_on_resume="stretch", **optimizer):
    optimizer = OptimizerConfig(**{"warmup_steps": 4} | optimizer)
    return RunConfig(
        output_dir="run", num_train_steps=steps, optimizer=optimizer, schedule_on_resume=schedule_on_resume
    )


def rates(config):
    pieces = learning_rate_pieces(config.recipe, config.schedule_steps)
    return [learning_rate(pieces, step) for step in range(config.total_steps)]


def resumed(before, steps, schedule_on_resume="stretch", steps_taken=0, log=lambda line: None):
    now = replace(before, num_train_steps=steps, schedule_on_resume=schedule_on_resume, schedule_changes=[])
    return with_schedule_changes(now, asdict(before), steps_taken, log)


@pytest.mark.parametrize("schedule", ["cosine", "cosine_restarts", "wsd", "linear", "two_stage"])
def test_a_stretched_schedule_is_that_of_the_number_of_steps(schedule):
    lines = []
    longer = resumed(config(40, schedule=schedule), 80, steps_taken=40, log=lines.append)
    assert rates(longer) == rates(config(80, schedule=schedule))
    assert longer.schedule_changes == [{"step": 40, "from": 40, "to": 80, "schedule": "stretch"}]
    assert "num_train_steps: 40 before, now 80; schedule stretched: step 41 has learning rate" in lines[0]


@pytest.mark.parametrize("schedule", ["cosine", "cosine_restarts", "wsd", "linear"])
@pytest.mark.parametrize("steps_taken", [10, 40])
def test_a_continued_schedule_keeps_its_steps_and_its_final_rate(schedule, steps_taken):
    before = config(40, schedule=schedule)
    longer = resumed(before, 80, "continue", steps_taken)
    assert rates(longer)[:40] == rates(before)
    assert rates(longer)[41:] == pytest.approx([0.1 * before.optimizer.learning_rate] * 39)


def test_the_flat_part_of_wsd_is_longer_in_a_stretched_run():
    before = config(100, schedule="wsd")
    longer = resumed(before, 200, steps_taken=70)  # before its decay: as if 200 had been given at the start
    assert rates(longer)[:80] == rates(before)[:80]
    assert rates(longer)[159] == before.optimizer.learning_rate > rates(longer)[170]


def test_changes_add_up_and_come_back_from_a_file():
    twice = resumed(resumed(config(40), 80, "continue", 40), 120, "continue", 80)
    assert twice.schedule_steps == 40 and len(twice.schedule_changes) == 2
    stretched = resumed(twice, 160, "stretch", 120)
    assert stretched.schedule_steps == 160 and rates(stretched) == rates(config(160))
    assert resumed(stretched, 160, "continue", 130) == replace(stretched, schedule_on_resume="continue")
    assert resumed(twice, 120, steps_taken=100).schedule_steps == 40  # resumed once more without a change


def test_fewer_steps_end_the_run_early_but_not_before_where_it_is():
    assert resumed(config(40), 20, steps_taken=20).total_steps == 20
    with pytest.raises(
        ValueError, match="num_train_steps: found 20, but the run has taken 30 steps; expected at least"
    ):
        resumed(config(40), 20, steps_taken=30)


@pytest.mark.parametrize("optimizer", [{"schedule": "two_stage"}, {"final_fraction": 0.0}])
def test_a_schedule_that_ends_at_zero_is_not_continued(optimizer):
    with pytest.raises(ValueError, match=r"ends at learning rate 0.*use --schedule_on_resume stretch"):
        resumed(config(40, **optimizer), 80, "continue", 40)


def test_a_history_of_another_hand_is_refused():
    for change in ({}, {"step": 1, "from": "a", "to": 2, "schedule": "stretch"}, {"step": 1, "from": 1, "to": 2}):
        with pytest.raises(
            ValueError, match=r"schedule_changes: found .* expected what the trainer wrote; leave it out"
        ):
            replace(config(40), schedule_changes=[change])


def test_a_warmup_that_is_cut_is_said_and_comes_back_in_a_longer_run():
    lines = []
    short = config(40, warmup_steps=100)
    log_warmup(short, lines.append)
    assert lines == ["optimizer.warmup_steps: found 100, but the schedule has 40 steps; the warm-up is cut to 4"]
    longer = resumed(short, 1000, steps_taken=40)
    log_warmup(longer, lines.append)
    assert len(lines) == 1 and longer.recipe.warmup_steps == 100
