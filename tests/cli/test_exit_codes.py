"""Exit codes, how errors are printed, and what a closed pipe or an interrupt does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pft_ray import errors
from pft_ray.cli import render
from pft_ray.cli.train import exit_code
from pft_ray.cluster.trainer import RunResult
from tests.e2e.refusals import pft

CODES = {
    "PftError": 1,
    "InputError": 2,
    "ConfigError": 2,
    "PlanError": 2,
    "DataError": 2,
    "ModelError": 2,
    "MissingExtraError": 2,
    "PlacementError": 2,
    "ScalingError": 2,
    "ResumeError": 2,
    "UnknownBlockError": 2,
    "UnknownPurposeError": 2,
    "BlockModeError": 2,
    "UnknownRunError": 2,
    "SettledError": 2,
    "BudgetError": 3,
    "BudgetExhausted": 3,
    "MustWaitError": 3,
    "ReservationExpiredError": 3,
    "LedgerError": 1,
    "LedgerFormatError": 2,
    "LedgerLockedError": 1,
    "LedgerStorageError": 1,
    "LedgerUnreachableError": 1,
    "LedgerConnectionLostError": 1,
    "VerificationError": 4,
    "LedgerBehindError": 4,
    "StaleCoordinatorError": 1,
    "AttemptClosedError": 1,
    "GrantRefusedError": 1,
    "VoidStepError": 1,
    "CoordinatorUnreachableError": 1,
    "RunFailedError": 1,
}
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.PftError)
}


def test_every_error_has_its_exit_code():
    assert {name: cls.exit_code for name, cls in CLASSES.items()} == CODES


def test_every_error_has_a_word_of_its_own():
    words = [cls.code for cls in CLASSES.values()]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("name", CLASSES)
def test_the_entry_point_turns_errors_into_codes(name, monkeypatch):
    def fail(*_args, **_kwargs):
        raise CLASSES[name]("What was found.", "What to change.", {"number": 3})

    monkeypatch.setattr("pft_ray.config.load_job", fail)
    answer = pft("plan", "job.yaml", "--json")
    assert answer.code == CODES[name]
    assert answer.json == {
        "error": {
            "code": CLASSES[name].code,
            "message": "What was found.",
            "fix": "What to change.",
            "details": {"number": 3},
        }
    }
    assert answer.err == ""
    plain = pft("plan", "job.yaml")
    assert plain.out == ""
    assert plain.err == "error: What was found.\n       What to change.\n"


def result(status, signal=0):
    return RunResult("run", Path("run"), status, None, resumed=False, signal=signal)


@pytest.mark.parametrize(
    ("status", "signal", "code"),
    [
        ("completed", 0, 0),
        ("budget_exhausted", 0, 3),
        ("interrupted", 2, 130),
        ("interrupted", 15, 143),
        ("interrupted", 0, 1),
        ("failed", 0, 1),
        ("died", 0, 1),
    ],
)
def test_exit_code_of_a_run(status, signal, code):
    assert exit_code(result(status, signal)) == code


def test_an_error_without_a_fix_is_one_line(capsys):
    render.print_error(errors.PftError("Only [bold]this[/bold]."), as_json=False)
    assert capsys.readouterr().err == "error: Only [bold]this[/bold].\n"


def test_long_errors_are_not_broken_into_lines(capsys):
    render.print_error(errors.PftError("word " * 100), as_json=False)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_json_refuses_what_is_no_json(capsys):
    with pytest.raises(ValueError, match="not JSON compliant"):
        render.print_json({"epsilon": float("inf")})
    assert capsys.readouterr().out == ""


def test_an_interrupt_is_130_without_a_traceback(monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pft_ray.config.load_job", interrupt)
    answer = pft("plan", "job.yaml")
    assert answer.code == 130
    assert "Traceback" not in answer.err


def test_help_and_version_are_no_errors():
    from pft_ray import __version__

    assert (pft("--version").code, pft("--version").out) == (0, f"{__version__}\n")
    answer = pft("plan", "--help")
    assert answer.code == 0
    assert answer.out.startswith("Usage: pft plan [OPTIONS] [JOB]")
    assert "  pft plan job.yaml --set privacy.epsilon=2" in answer.out


def test_success_with_json_is_one_object():
    answer = pft("schema", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["title"] == "JobSpec"
