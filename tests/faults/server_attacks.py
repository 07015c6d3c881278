"""Attacks on the server as trials of the campaign: each starts a server, attacks it, and stops it by a signal."""

from pathlib import Path

import numpy as np

from tests.faults.trial import Kind, Outcome
from tests.faults.workplace import Workplace

REQUESTS = 2000
_SHOWN = 3


def attack_server(workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Send requests of every kind, right, wrong and damaged; nothing but what is documented may come back."""
    from tests.faults.server import attack

    outcome = Outcome()
    found = attack(requests=REQUESTS, seed=int(rng.integers(2**31)))
    outcome.tried = found["requests"]
    for text in found["shown"][:_SHOWN]:
        outcome.fail("crashed", text)
    return outcome


KINDS = [Kind("server", attack_server, 4.0, limit_s=600)]
