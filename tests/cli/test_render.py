"""What is printed for people: nothing is cut off, at any width."""

from __future__ import annotations

import re

import pytest

from pft_ray.cli import render
from pft_ray.cli.budget import _bar

NAMES = ["mail/train", "a-rather-long-registration-name/validation-of-2024"]
ROWS = [[name, "3.00", "1e-05", "." * 16] for name in NAMES]
COLUMNS = ["block", "left", "delta left", "burn-down"]


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_tables_lose_nothing_in_a_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    render.print_table(COLUMNS, ROWS)
    out = capsys.readouterr().out
    assert "…" not in out
    assert out.count("." * 16) == 2
    first_column = re.sub(r"\s|3\.00|1e-05|\.{16}", "", out)
    assert all(name in first_column for name in NAMES)


def test_tables_are_one_line_a_row_away_from_a_terminal(capsys):
    wide = [["x " * 200, "1", "2", "3"]]
    render.print_table(COLUMNS, [*ROWS, *wide])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("x " * 199)


def test_cells_are_printed_as_they_are(capsys):
    render.print_table(["what"], [["[red]not markup[/red] :smile: 1.5"]])
    assert "[red]not markup[/red] :smile: 1.5" in capsys.readouterr().out
    render.print_facts([("name", "[b]x[/b]"), ("longer name", 3)])
    out = capsys.readouterr().out.splitlines()
    assert out == ["name         [b]x[/b]", "longer name  3"]


@pytest.mark.parametrize(
    ("used", "reserved", "expected"),
    [
        (0, 0, "................"),
        (0, 8, "++++++++........"),
        (4, 8, "####++++........"),
        (16, 16, "################"),
    ],
)
def test_burn_down(used, reserved, expected):
    row = {"epsilon": 16.0, "used_epsilon": used, "reserved_epsilon": reserved}
    assert _bar(row) == expected


def test_what_libraries_print_goes_to_stderr(capfd):
    import os

    saved = render.quiet_stdout()
    os.write(1, b"noise\n")
    render.restore_stdout(saved)
    os.write(1, b"answer\n")
    out, err = capfd.readouterr()
    assert (out, err) == ("answer\n", "noise\n")
