"""The anchor file: atomic, durable, only ever higher."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from pft_ray.errors import LedgerBehindError, LedgerStorageError, VerificationError
from pft_ray.ledger import Position, read_anchors, write_anchor
from pft_ray.ledger import anchor as anchor_module

ID = "ab" * 16


def root(number: int) -> str:
    return f"{number:064x}"


def test_round_trip(tmp_path):
    path = tmp_path / "runs" / "anchor.json"
    assert read_anchors(path) == ()
    assert write_anchor(path, ID, Position(7, root(7))) is True
    (anchor,) = read_anchors(path)
    assert (anchor.ledger_id, anchor.sequence, anchor.root) == (ID, 7, root(7))
    assert (anchor.counts, "anchor.json" in anchor.source) == ("entries", True)
    assert [p.name for p in path.parent.iterdir()] == ["anchor.json"]


def test_never_goes_back(tmp_path):
    path = tmp_path / "anchor.json"
    write_anchor(path, ID, Position(7, root(7)))
    assert write_anchor(path, ID, Position(6, root(6))) is False
    assert write_anchor(path, ID, Position(7, root(7))) is False
    assert read_anchors(path)[0].sequence == 7
    assert write_anchor(path, ID, Position(8, root(8))) is True
    assert read_anchors(path)[0].sequence == 8


def test_a_fork_is_refused(tmp_path):
    path = tmp_path / "anchor.json"
    write_anchor(path, ID, Position(7, root(7)))
    with pytest.raises(VerificationError, match="another history"):
        write_anchor(path, ID, Position(7, root(8)))


@pytest.mark.parametrize("sequence", [3, 7, 9])
def test_another_ledger_is_refused(tmp_path, sequence):
    path = tmp_path / "anchor.json"
    write_anchor(path, ID, Position(7, root(7)))
    with pytest.raises(VerificationError, match="belongs to ledger") as caught:
        write_anchor(path, "cd" * 16, Position(sequence, root(7)))
    assert not isinstance(caught.value, LedgerBehindError)
    assert read_anchors(path)[0].ledger_id == ID


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"version":2}', '{"version":1,"ledger_id":"x"}', "null"],
)
def test_an_unreadable_file_is_an_error_and_never_no_anchor(tmp_path, content):
    path = tmp_path / "anchor.json"
    path.write_text(content)
    with pytest.raises(VerificationError, match=r"anchor\.json"):
        read_anchors(path)
    with pytest.raises(VerificationError):
        write_anchor(path, ID, Position(1, root(1)))
    assert path.read_text() == content


def test_a_crash_while_writing_leaves_the_old_anchor(tmp_path, monkeypatch):
    path = tmp_path / "anchor.json"
    write_anchor(path, ID, Position(7, root(7)))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LedgerStorageError, match="No space left"):
        write_anchor(path, ID, Position(8, root(8)))
    monkeypatch.undo()
    assert read_anchors(path)[0].sequence == 7
    assert [p.name for p in tmp_path.iterdir()] == ["anchor.json"]


def test_the_new_content_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))
    )
    write_anchor(tmp_path / "anchor.json", ID, Position(1, root(1)))
    assert order == ["fsync", "replace", "fsync"]


def _raise_anchor(path: str, start: int) -> None:
    for number in range(start, start + 40, 2):
        write_anchor(Path(path), ID, Position(number, root(number)))


def test_several_writers_keep_the_highest(tmp_path):
    path = tmp_path / "anchor.json"
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_raise_anchor, args=(str(path), start))
        for start in (1, 2, 30)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
        assert writer.exitcode == 0
    assert read_anchors(path)[0].sequence == 68
    assert json.loads(path.read_text())["root"] == root(68)


def _write_slowly(path: str, started, go) -> None:
    replace = anchor_module._replace

    def slow(*arguments, **named) -> None:
        started.set()
        go.wait(2)
        replace(*arguments, **named)

    anchor_module._replace = slow
    write_anchor(Path(path), ID, Position(5, root(5)))


def test_a_slow_writer_cannot_overwrite_a_later_position(tmp_path):
    path = tmp_path / "anchor.json"
    context = multiprocessing.get_context("fork")
    started, go = context.Event(), context.Event()
    slow = context.Process(target=_write_slowly, args=(str(path), started, go))
    slow.start()
    assert started.wait(60)
    fast = context.Process(target=write_anchor, args=(path, ID, Position(9, root(9))))
    fast.start()
    fast.join(timeout=0.5)  # waits for the slow one
    go.set()
    for writer in (slow, fast):
        writer.join(timeout=60)
        assert writer.exitcode == 0
    assert read_anchors(path)[0].sequence == 9
