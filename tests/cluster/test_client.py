"""A rank's client: what it sends ahead, what it waits for, what it tells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pft_ray.cluster import actors
from pft_ray.cluster.actors import CoordinatorClient
from pft_ray.errors import LedgerStorageError
from pft_ray.training.loop import GrantReply

TOKEN = b"0123456789abcdef"


class Actor:
    """Notes what is sent; a pending reply is the call itself."""

    def __init__(self):
        self.sent = []

    def __getattr__(self, name):
        def remote(*args):
            self.sent.append((name, args))
            return (name, args)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def actor(monkeypatch):
    actor = Actor()

    def call(handle, method, *args, timeout_s=60.0, sent=None, **named):
        if sent is None:
            sent = getattr(handle, method).remote(*args)
        assert sent == (method, args), "it waits for the reply of this very call"
        if args == (1, 9, "full"):
            raise LedgerStorageError("The disk is full.")
        place = {"sequence": len(actor.sent)}
        return GrantReply("granted", (), place) if method == "request" else None

    monkeypatch.setattr(actors, "call", call)
    return actor


def test_a_request_sent_ahead_is_not_sent_again(actor):
    client = CoordinatorClient(actor, 1, TOKEN)
    client.ask_ahead(4, 10, 15)
    assert client.position is None
    client.request(4, 10, 15)
    assert actor.sent == [("request", (4, 1, TOKEN, 10, 15))]
    assert client.position == {"sequence": 1}


@pytest.mark.parametrize("other", [(5, 10, 15), (4, 9, 14), (4, 10, 14)])
def test_a_request_sent_ahead_for_other_steps_is_dropped(actor, other):
    client = CoordinatorClient(actor, 1, TOKEN)
    client.ask_ahead(4, 10, 15)
    client.request(*other)
    client.request(*other)
    assert [args[0:1] + args[3:] for _, args in actor.sent] == [
        (4, 10, 15),
        other,
        other,
    ]


def test_a_checkpoints_row_is_waited_for_before_the_next_and_at_the_end(actor):
    client = CoordinatorClient(actor, 0, TOKEN)
    client.settle()
    client.checkpoint_registered(1, 9, "full")
    with pytest.raises(LedgerStorageError, match="full"):
        client.checkpoint_registered(1, 12, "step-12")
    client.settle()
    client.checkpoint_registered(1, 15, "step-15")
    client.settle()
    assert [args[1] for _, args in actor.sent] == [9, 15]


def test_progress_is_told_at_most_five_times_a_second(actor, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(actors.time, "monotonic", lambda: clock[0])
    replies = iter([None, True, None, False])
    monkeypatch.setattr(actors, "reply_if_there", lambda sent: next(replies))
    client = CoordinatorClient(actor, 0, TOKEN)
    warned = []
    for step in range(100):
        warned.append(client.progress(1, step))
        clock[0] += 0.01
    changes = [s for s in range(1, 100) if warned[s] != warned[s - 1]]
    assert changes == [40, 80], "a warning holds until a reply takes it back"
    assert [args[1] for _, args in actor.sent] == [0, 20, 40, 60, 80]
