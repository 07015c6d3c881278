import os
import signal
from pathlib import Path

import pytest

from shared_tokenizer.preparation.executors import run_jobs


def double(job):
    return 2 * job


def killed_the_first_time(job):
    folder, number = job
    marker = Path(folder) / str(number)
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def refused(job):
    raise ValueError(f"job {job} is refused")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order_and_errors_reach_the_caller(num_workers):
    assert list(run_jobs(double, range(7), "local", num_workers)) == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(ValueError, match="job 0 is refused"):
        list(run_jobs(refused, range(3), "local", num_workers))


def test_the_job_of_a_killed_worker_is_done_again(tmp_path):
    jobs = [(str(tmp_path), number) for number in range(5)]
    assert list(run_jobs(killed_the_first_time, jobs, "local", 2)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="worker: ended 3 times at slice 0, perhaps for lack of memory"):
        list(run_jobs(always_killed, range(2), "local", 2))
