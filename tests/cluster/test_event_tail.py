"""Following an event file: whole lines, each once, from where it was told to begin."""

from __future__ import annotations

import json

from pft_ray.telemetry import EventFile, EventTail


def test_lines_come_once_and_only_when_they_are_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.new() == []
    events = EventFile(path)
    events.write({"event": "one"})
    events.write({"event": "two"})
    with path.open("a") as file:
        file.write('{"event": "th')
    assert [event["event"] for event in tail.new()] == ["one", "two"]
    assert tail.new() == []
    with path.open("a") as file:
        file.write('ree"}\n')
    assert tail.new() == [{"event": "three"}]


def test_it_begins_at_the_end_or_at_the_beginning(tmp_path):
    path = tmp_path / "events.jsonl"
    EventFile(path).write({"event": "old"})
    late, early = EventTail(path), EventTail(path, whole=True)
    EventFile(path).write({"event": "new"})
    assert [event["event"] for event in late.new()] == ["new"]
    assert [event["event"] for event in early.new()] == ["old", "new"]
    assert json.loads(path.read_text().splitlines()[0])["time"] > 0
