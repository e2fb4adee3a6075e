"""What has to hold after every kill, judged from the outside.

What was released is read from the journal, what was paid from the ledger's rows by
plain SQL; the loss of what was released is computed with dp-accounting alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import dp_accounting
from dp_accounting.pld import pld_privacy_accountant

from pft_ray.ledger import verify
from tests.contracts.spies import find_reuse
from tests.kills.journal import (
    JournalRegister,
    charged_steps,
    ledger_rows,
    read_journal,
)

# The accountant's own grid is coarser than the project's; one step more than paid
# for changes the loss by far more.
_GRID = 1e-3
_SLACK = 1e-4


@lru_cache(maxsize=256)
def released_epsilon(rate: float, sigma: float, count: int, delta: float) -> float:
    """Returns the loss of ``count`` noisy sums, by dp-accounting alone."""
    if count == 0:
        return 0.0
    add_or_remove = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = pld_privacy_accountant.PLDAccountant(add_or_remove, _GRID)
    event = dp_accounting.GaussianDpEvent(sigma)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, event), count)
    return float(accountant.get_epsilon(delta))


@dataclass
class Evidence:
    """What one run left behind for the judge."""

    ledger: str
    run_id: str
    journal: Path
    report_epsilon: float | None
    entries: list[dict] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = read_journal(self.journal)

    def of(self, what: str) -> list[dict]:
        return [entry for entry in self.entries if entry["what"] == what]

    @property
    def released(self) -> set[tuple[int, int]]:
        """Every (attempt, step) of which a share left its process."""
        return {tuple(entry["place"]) for entry in self.of("entered")}


@dataclass
class Judge:
    """Judges the runs of one matrix; runs are compared with each other, too.

    Attributes:
        epsilon: What a run reports in which nobody is killed.
        keys: Hash of each key to the run that used it.
    """

    epsilon: float
    keys: dict[str, str] = field(default_factory=dict)

    def faults(self, evidence: Evidence) -> list[str]:
        """Returns everything that is wrong with a run, in words."""
        run = evidence.run_id
        register = JournalRegister(evidence.ledger, run, evidence.entries)
        found = find_reuse(register)
        paid = charged_steps(evidence.ledger, run)
        found += [f"{place} was never paid" for place in evidence.released - paid]
        found += self._loss(evidence, len(evidence.released))
        found += self._keys_of(evidence)
        found += _epochs(evidence)
        found += [
            f"a replaced coordinator {entry['answer']}"
            for entry in evidence.of("stale")
            if entry["answer"] != "stale-coordinator"
        ]
        if evidence.report_epsilon not in (None, self.epsilon):
            found.append(f"epsilon {evidence.report_epsilon} instead of {self.epsilon}")
        return found

    def _loss(self, evidence: Evidence, count: int) -> list[str]:
        """The ledger's epsilon is at least that of what was really released."""
        (check,) = [
            r for r in verify(evidence.ledger).runs if r.run_id == evidence.run_id
        ]
        claimed = next(e for e in check.envelopes if e.purpose == "training").epsilon
        stated = check.stated
        real = released_epsilon(
            stated["sample_rate"], stated["noise_multiplier"], count, check.delta
        )
        found = []
        if real > claimed + _SLACK:
            found.append(f"released epsilon {real}, the ledger says {claimed}")
        if evidence.report_epsilon not in (None, check.epsilon):
            found.append("report and ledger name different epsilons")
        if check.num_steps_charged > check.num_steps_max:
            found.append("more steps charged than the allowance holds")
        return found

    def _keys_of(self, evidence: Evidence) -> list[str]:
        """A key is fresh: no other attempt has it, in this run or in another."""
        found = []
        for entry in evidence.of("attempt"):
            place = f"{evidence.journal} attempt {entry['number']}"
            if self.keys.setdefault(entry["key"], place) != place:
                found.append(f"attempt {entry['number']} has an earlier attempt's key")
        for entry in evidence.of("key"):
            place = str(evidence.journal)
            if self.keys.setdefault(entry["key"], place) != place:
                found.append(f"a key of another run at {entry['place']}")
        return found


def _epochs(evidence: Evidence) -> list[str]:
    """A later row never carries an earlier epoch."""
    last, found = 0, []
    for kind in ("attempt", "grant"):
        last = 0
        for body in ledger_rows(evidence.ledger, kind, evidence.run_id):
            if body["epoch"] < last:
                found.append(f"{kind} of epoch {body['epoch']} after epoch {last}")
            last = max(last, body["epoch"])
    return found
