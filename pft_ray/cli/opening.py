"""The ledger that the command line names, opened once and in one way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pft_ray.ledger import Ledger


def open_ledger(url: str | None) -> Ledger:
    """Opens the ledger that the command line names; its events go to $PFT_HOME."""
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import events_file, keys_dir, ledger_location

    opened = Ledger.open(ledger_location(url), keys_dir=keys_dir(), create=False)
    opened.observers.subscribe(events_file())
    return opened
