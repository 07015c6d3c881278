"""A run that is resumed with another number of steps: what becomes of its schedule, and the history of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from jaxlm.common.run.optimizer_config import learning_rate, learning_rate_pieces

if TYPE_CHECKING:
    from jaxlm.common.run.run_config import StepsConfig

ScheduleOnResume = Literal["stretch", "continue"]
Config = TypeVar("Config", bound="StepsConfig")


def check_schedule_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError on a history that the trainer has not written."""
    for change in changes:
        numbers = [change.get(name) for name in ("step", "from", "to")]
        if not all(type(number) is int for number in numbers) or change.get("schedule") not in get_args(
            ScheduleOnResume
        ):
            raise ValueError(f"schedule_changes: found {change!r}, expected what the trainer wrote; leave it out")


def schedule_steps(changes: Sequence[Mapping[str, Any]], num_train_steps: int) -> int:
    """Return the steps that the schedule is made for: those before the changes that continued it, else all."""
    for change in reversed(changes):
        if change["schedule"] == "stretch":
            break
        num_train_steps = change["from"]
    return num_train_steps


def with_schedule_changes(
    config: Config, recorded: Mapping[str, Any], steps_taken: int, log: Callable[[str], None]
) -> Config:
    """Return the settings of a resumed run with its history, and with one more change if its steps have changed.

    `recorded` are the settings of the run so far, `config` has its number of steps. Raises ValueError where the run has
    taken more steps than that, or where it would go on at learning rate 0.
    """
    changes = list(recorded.get("schedule_changes") or [])
    before, now = recorded["num_train_steps"], config.total_steps
    if now < steps_taken:
        raise ValueError(
            f"num_train_steps: found {now}, but the run has taken {steps_taken} steps; expected at least that many"
        )
    earlier = replace(config, num_train_steps=before, schedule_changes=changes)
    if now == before:
        return replace(config, schedule_changes=changes)
    change = {"step": steps_taken, "from": before, "to": now, "schedule": config.schedule_on_resume}
    changed = replace(config, schedule_changes=[*changes, change])
    old, new = (
        learning_rate(learning_rate_pieces(each.recipe, each.schedule_steps), steps_taken)
        for each in (earlier, changed)
    )
    last = learning_rate(learning_rate_pieces(changed.recipe, changed.schedule_steps), now - 1)
    if config.schedule_on_resume == "continue" and now > before and last == 0:
        raise ValueError(
            "schedule_on_resume: found continue, but the schedule ends at learning rate 0, where nothing is learned; "
            "use --schedule_on_resume stretch"
        )
    verb = "stretched" if config.schedule_on_resume == "stretch" else "continued"
    log(
        f"num_train_steps: {before} before, now {now}; schedule {verb}: step {min(steps_taken + 1, now)} has learning "
        f"rate {new:.2e} ({old:.2e} before)"
    )
    return changed


def log_warmup(config: "StepsConfig", log: Callable[[str], None]) -> None:
    """Log that the warm-up is cut, if it is."""
    given, cut = config.optimizer.warmup_steps, config.recipe.warmup_steps
    if given != cut:
        log(
            f"optimizer.warmup_steps: found {given}, but the schedule has {config.schedule_steps} steps; the warm-up "
            f"is cut to {cut}"
        )
