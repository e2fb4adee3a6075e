"""The verbs and their options are a promise: a change of them fails here."""

from __future__ import annotations

import pytest
import typer

from pft_ray.cli.main import app

# Arguments in capitals, then options; <...> marks those that take a value.
VERBS = {
    "plan": [
        *("JOB", "--size <>", "--sample-rate <>", "--batch-size <>"),
        *("--noise-multiplier <>", "--epsilon <>", "--steps <>", "--delta <>"),
        *("--fault-reserve <>", "--set <>", "--ledger <>", "--json"),
    ],
    "train": [
        *("JOB", "--address <>", "--new", "--resume <>", "--wait", "--set <>"),
        *("--ledger <>", "--dry-run", "--json"),
    ],
    "profile": ["JOB", "--set <>", "--json"],
    "report": ["RUN", "--runs <>", "--json"],
    "runs": ["--runs <>", "--ledger <>", "--json"],
    "predict": ["RUN", "TEXT", "--file <>", "--runs <>", "--json"],
    "export": ["RUN", "OUT", "--merge", "--runs <>", "--json"],
    "init": ["DATA", "--out <>", "--force", "--json"],
    "doctor": ["--ledger <>", "--json"],
    "schema": ["--json"],
    "budget create": [
        *("JOB", "--runs <>", "--epsilon <>", "--delta <>", "--mode <>"),
        *("--purpose <>", "--ledger <>", "--set <>", "--json"),
    ],
    "budget show": ["BLOCK", "--plot <>", "--ledger <>", "--json"],
    "budget history": [
        *("--block <>", "--run <>", "--limit <>", "--ledger <>", "--json"),
    ],
    "budget verify": ["--runs <>", "--ledger <>", "--json"],
    "budget release": ["RUN", "--ledger <>", "--json"],
    "budget allocate": [
        *("BLOCK", "--jobs-left <>", "--after <>", "--purpose <>", "--boost <>"),
        *("--runs <>", "--ledger <>", "--json"),
    ],
    "budget export": ["FILE", "--ledger <>", "--json"],
    "budget import-check": ["FILE", "--ledger <>", "--json"],
    "budget move": [
        *("BLOCK", "--from <>", "--to <>", "--fraction <>", "--rho <>"),
        *("--ledger <>", "--json"),
    ],
    "budget reserve": [
        *("JOB", "--expires <>", "--wait", "--together <>", "--ledger <>"),
        *("--set <>", "--json"),
    ],
    "budget queue": ["--order <>", "--dpf-n <>", "--ledger <>", "--json"],
    "budget leave": ["RUN", "--ledger <>", "--json"],
}


def commands(group=None, before=""):
    """Every verb by its full name."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands())


def written(parameter):
    if parameter.param_type_name == "argument":
        return parameter.metavar
    return f"{parameter.opts[0]}{'' if parameter.is_flag else ' <>'}"


def test_the_verbs_are_these():
    assert list(COMMANDS) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_of_a_verb_are_these(verb):
    assert [written(parameter) for parameter in COMMANDS[verb].params] == VERBS[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_is_explained(verb):
    command = COMMANDS[verb]
    assert command.help
    assert len(command.get_short_help_str(200).split(".")[0]) < 75
    for parameter in command.params:
        assert parameter.help, parameter.name


def test_one_option_means_the_same_everywhere():
    texts: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            if parameter.opts[0] in ("--json", "--set", "--ledger"):
                texts.setdefault(parameter.opts[0], set()).add(parameter.help)
    assert {name: len(found) for name, found in texts.items()} == {
        "--json": 1,
        "--set": 1,
        "--ledger": 1,
    }


def test_examples_use_verbs_and_options_that_exist():
    import shlex

    from pft_ray.cli import examples

    found = 0
    for name, text in vars(examples).items():
        if not name.isupper():
            continue
        for line in text.splitlines()[2:]:
            words = shlex.split(line.split(" > ")[0].split("   ")[0])
            assert words[0] == "pft"
            verb = " ".join(words[1:3]) if words[1] == "budget" else words[1]
            options = {written(p).split()[0] for p in COMMANDS[verb].params}
            used = {word for word in words if word.startswith("--")}
            assert used <= options, line
            found += 1
    assert found >= 20
