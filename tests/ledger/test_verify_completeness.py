"""What anchors prove, and prices derived from the events alone."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pft_ray.accounting.events import NonPrivate, PoissonGaussian, Repeat
from pft_ray.errors import (
    InputError,
    LedgerBehindError,
    LedgerError,
    VerificationError,
)
from pft_ray.ledger import Anchor, Envelope, Ledger, LedgerState, verify
from tests.ledger.builders import (
    TRAIN,
    add_blocks,
    live_through,
    make_envelopes,
    make_full_ledger,
    make_plan,
    num_rows,
    open_ledger,
    raw,
)
from tests.ledger.verifying import COMPLETENESS, anchor_of, check, rows_of

# -- completeness -------------------------------------------------------------------


def test_an_anchor_proves_completeness_up_to_it(full):
    anchor = anchor_of(full)
    words = check(full, anchor).words
    assert str(anchor.sequence) in words
    assert "checkpoint x" in words
    assert COMPLETENESS not in words


def test_a_cut_tail_is_a_valid_prefix_until_an_anchor_knows_better(full):
    anchor = anchor_of(full)
    early = Anchor(anchor.ledger_id, 3, rows_of(full)[2][4], "early")
    raw(full, "DELETE FROM entries WHERE seq > 12")
    assert check(full).words == COMPLETENESS
    check(full, early)
    with pytest.raises(LedgerBehindError, match="checkpoint x") as caught:
        check(full, early, anchor)
    assert caught.value.details["sequence"] == anchor.sequence
    with Ledger.open(full) as ledger, pytest.raises(LedgerBehindError):
        ledger.require([early, anchor])


def test_an_old_copy_is_behind_its_anchor(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        path = ledger.path
    old = shutil.copy(path, tmp_path / "old.db")
    with Ledger.open(path) as ledger:
        live_through(ledger)
    anchor, report = anchor_of(path), anchor_of(path, counts="reservations")
    check(path, anchor, report)
    check(old)
    for newer in (anchor, report):
        with pytest.raises(LedgerBehindError):
            check(old, newer)


def test_a_rolled_back_and_regrown_ledger_is_another_history(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        path = ledger.path
    fork = shutil.copy(path, tmp_path / "fork.db")
    for copy in (path, fork):
        with Ledger.open(copy) as ledger:
            live_through(ledger)
    assert num_rows(path) == num_rows(fork)
    for anchor in (anchor_of(path), anchor_of(path, counts="reservations")):
        check(path, anchor)
        with pytest.raises(VerificationError, match="another history") as caught:
            check(fork, anchor)
        assert not isinstance(caught.value, LedgerBehindError)
        with Ledger.open(fork) as ledger, pytest.raises(VerificationError):
            ledger.require([anchor])


def test_another_ledgers_anchor_is_refused(tmp_path):
    one, two = make_full_ledger(tmp_path / "1"), make_full_ledger(tmp_path / "2")
    with pytest.raises(VerificationError, match="belongs to ledger"):
        check(one, anchor_of(two))


def test_a_report_needs_no_ledger_id(full):
    shown = anchor_of(full, counts="reservations")
    anonymous = Anchor(None, shown.sequence, shown.root, "report.json", "reservations")
    assert "reservation 1" in check(full, anonymous).words
    forged = Anchor(None, 1, "0" * 64, "report.json", "reservations")
    with pytest.raises(VerificationError, match=r"report\.json"):
        check(full, forged)
    later = Anchor(None, 2, shown.root, "report.json", "reservations")
    with pytest.raises(LedgerBehindError):
        check(full, later)
    with Ledger.open(full) as ledger:
        ledger.require([anonymous])
        for bad in (forged, later):
            with pytest.raises(VerificationError):
                ledger.require([bad])


def test_every_prefix_is_valid(full):
    """What a crash or a cut leaves is always a state that the rules allow."""
    from pft_ray.ledger.state import replay_row

    rows = [(seq, *(part.encode() for part in rest)) for seq, *rest in rows_of(full)]
    for end in range(1, len(rows) + 1):
        state = LedgerState()
        for row in rows[:end]:
            replay_row(state, row)
        assert state.sequence == end


# -- prices -------------------------------------------------------------------------


def test_epsilon_is_derived_from_the_events_alone(full):
    asked = []

    def price(event, delta):
        asked.append((event, delta))
        return 0.75

    (run,) = check(full, epsilon=price).runs
    plan = make_plan()
    assert asked == [
        (Repeat(PoissonGaussian(0.1, 1.0), 25), 1e-5),
        (plan.evaluation.event, 1e-5),
    ]
    assert (run.epsilon, run.envelope) == (0.75, 1.0)
    assert [e.purpose for e in run.envelopes] == ["training", "evaluation"]


@pytest.mark.parametrize("price", [1.000001, 2.0, float("inf"), float("nan")])
def test_an_envelope_below_its_price_does_not_verify(full, price):
    with pytest.raises((VerificationError, InputError)) as caught:
        check(full, epsilon=lambda event, delta: price)
    assert isinstance(caught.value, VerificationError)
    assert caught.value.details["run_id"] == "run"


def test_rounding_of_another_machine_is_forgiven(full):
    check(full, epsilon=lambda event, delta: 1.0 + 1e-12)


def test_overlapping_blocks_of_a_run_are_summed(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        plan = make_plan()
        ledger.reserve("disjoint", plan, make_envelopes(plan, 1.0))
        ledger.reserve("same", plan, make_envelopes(plan, 1.0, validation=TRAIN))
        runs = {run.run_id: run for run in check(ledger, epsilon=lambda *_: 0.5).runs}
    assert runs["disjoint"].epsilon == 0.5
    assert runs["same"].epsilon == 1.0


def test_a_returned_reservation_is_not_priced(tmp_path):
    with open_ledger(tmp_path) as ledger:
        add_blocks(ledger)
        plan = make_plan()
        ledger.reserve("run", plan, make_envelopes(plan, 1.0))
        ledger.release_reservation("run")
        assert check(ledger, epsilon=lambda *_: 99.0).runs == ()


def test_the_project_accountant_prices_by_default(tmp_path):
    """An honest envelope verifies under PLD; one a hundredth too small does not."""
    from pft_ray.accounting.accountants import epsilon

    plan = make_plan(evaluation=None)
    price = epsilon(plan.event, plan.delta)
    assert 1.0 < price < 10.0
    for factor in (1.0, 0.99):
        with open_ledger(tmp_path / str(factor)) as ledger:
            add_blocks(ledger, epsilon=20.0)
            honest = Envelope.priced(
                TRAIN, "training", factor * price, plan.delta, plan.event
            )
            ledger.reserve("run", plan, [honest])
            if factor == 1.0:
                (run,) = verify(ledger).runs
                assert run.epsilon == pytest.approx(price, rel=1e-12)
            else:
                with pytest.raises(VerificationError, match="training envelope"):
                    verify(ledger)


def test_an_event_without_privacy_cannot_be_reserved(ledger):
    plan = make_plan(evaluation=None)
    free = Envelope.priced(TRAIN, "training", 1.0, 1e-5, NonPrivate())
    with pytest.raises(InputError):
        ledger.reserve("run", plan, [free])


# -- fingerprints -------------------------------------------------------------------


def test_changed_fingerprints_are_caught_with_the_key(tmp_path):
    path = make_full_ledger(tmp_path)
    key = Path(tmp_path / "keys/fingerprint.key").read_bytes()
    check(path, fingerprint_key=key)
    with pytest.raises(LedgerError, match="key"):
        check(path, fingerprint_key=bytes(32))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER fingerprints_no_delete")
        connection.execute(
            "DELETE FROM fingerprints WHERE digest IN "
            "(SELECT digest FROM fingerprints LIMIT 1)"
        )
    check(path)
    with pytest.raises(VerificationError, match="'mail'"):
        check(path, fingerprint_key=key)


def test_removed_fingerprints_are_caught_without_the_key(full):
    with closing(sqlite3.connect(full, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER fingerprints_no_delete")
        connection.execute("DELETE FROM fingerprints")
    with pytest.raises(VerificationError, match="fingerprints"):
        check(full)
