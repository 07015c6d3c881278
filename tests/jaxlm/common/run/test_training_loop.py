import pytest
from rich.console import Console

from jaxlm.common.run.run_config import RunConfig, check_accumulation, steps_of_epochs
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.stop_request import StopRequested
from jaxlm.common.run.training_loop import sample_settings, train_steps, write_event, write_sample
from jaxlm.common.run.training_report import ReportPlan, TrainingReport


class Run:
    """A run that writes down what is asked of it."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def take_step(self, step):
        self.calls.append(f"step {step}")
        return {"train/loss": 1.0, "train/grad_norm": 1.0, "train/param_norm": 1.0}

    def check_stop(self):
        if self.calls[-1] == f"step {self.stop_at}":
            raise StopRequested("SIGTERM")

    def evaluate(self, step):
        self.calls.append(f"evaluate {step}")
        return f"evaluation {step}"

    def sample(self, step):
        self.calls.append(f"sample {step}")
        return ""

    def save(self, evaluation):
        self.calls.append(f"save with {evaluation}")


@pytest.fixture
def report(tmp_path):
    plan = ReportPlan(num_train_steps=6, log_every_steps=1, tokens_per_step=4, tokens_per_epoch=8)
    return TrainingReport(plan, RunDirectory(tmp_path), 0, lambda: None, Console(quiet=True))


CONFIG = RunConfig(
    output_dir="run", num_train_steps=6, eval_every_steps=2, sample_every_steps=3, checkpoint_every_steps=4
)


def test_what_is_due_is_done_between_steps_and_not_after_the_last(report):
    run = Run()
    train_steps(run, CONFIG, report, 1, 6)
    assert run.calls == [
        *("step 1", "step 2", "evaluate 2"),
        *("step 3", "sample 3"),
        *("step 4", "evaluate 4", "save with evaluation 4"),
        *("step 5", "step 6"),
    ]


def test_a_stop_ends_the_loop_after_its_step(report):
    run = Run(stop_at=2)
    with pytest.raises(StopRequested):
        train_steps(run, CONFIG, report, 1, 6)
    assert run.calls == ["step 1", "step 2"]


def test_samples_depend_on_the_seed_and_the_step(tmp_path):
    assert sample_settings(CONFIG, 3).seed == 3 and sample_settings(CONFIG, 3).max_tokens == CONFIG.sample_tokens
    write_sample(tmp_path / "samples.txt", 3, "a text")
    write_sample(tmp_path / "samples.txt", 4, "another")
    assert (tmp_path / "samples.txt").read_text() == "=== step 3\na text\n=== step 4\nanother\n"


def test_samples_that_a_resumed_run_repeats_are_written_once(tmp_path):
    path = tmp_path / "samples.txt"
    write_sample(path, 3, "first\n=== step 2\n=== steps")  # a text may look like the file
    write_sample(path, 6, "of a run that was killed")
    write_sample(path, 9, "too")
    write_sample(path, 6, "once more")
    write_sample(path, 9, "new")
    write_sample(path, 9, "newest")
    expected = "=== step 3\nfirst\n=== step 2\n=== steps\n=== step 6\nonce more\n=== step 9\nnewest\n"
    assert path.read_text() == expected


def test_a_run_tells_its_story_in_its_log_also_without_a_place_to_write(tmp_path):
    write_event(RunDirectory(tmp_path), "SIGTERM: saved step 3")
    assert (tmp_path / "run.log").read_text().endswith(" SIGTERM: saved step 3\n")
    write_event(RunDirectory(tmp_path / "gone"), "nobody hears it")


def test_epochs_are_steps():
    assert steps_of_epochs(2, examples=10, batch_size=4) == 5
    assert steps_of_epochs(0.01, examples=10, batch_size=4) == 1
    with pytest.raises(ValueError, match="found both, expected one of the two"):
        RunConfig(output_dir="run", num_train_steps=3, num_epochs=1)
    with pytest.raises(ValueError, match="found 3, expected a divisor of batch_size 8"):
        check_accumulation(8, 3)
