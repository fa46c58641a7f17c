"""Attacks on the verdict that were shown, each by its name: none is rewarded; and repairs of the same tasks are."""

import asyncio
import itertools
import json
from dataclasses import asdict, replace

import pytest
from judge_helpers import PYTEST_TASK, change, graded, source
from shown_attacks import ATTACKS, HONEST, REPORTS, TASKS

from coderepairrl.grading import counting, grader
from coderepairrl.grading.judge import Run, execute
from coderepairrl.grading.protected import select
from coderepairrl.rewards import Grader
from coderepairrl.types import VerdictKind


@pytest.mark.parametrize("name", ATTACKS)
def test_none_is_rewarded(config, name):
    shown = ATTACKS[name]
    paid, verdict = graded(config, shown.task, shown.diff)
    assert paid == 0 and verdict.kind in (VerdictKind.TAMPERED, VerdictKind.UNRESOLVED), verdict


@pytest.mark.parametrize("name", [name for name, shown in ATTACKS.items() if shown.wins_once])
def test_the_true_tests_alone_would_have_paid(config, name):
    """So the attack is alive, and what stops it is the runs with other expectations."""
    shown = ATTACKS[name]

    async def single():
        return await execute(shown.task, await grader.selected(shown.task, shown.diff), config)

    run = asyncio.run(single())
    assert counting.resolved_swebench(run) and not run.problem, run


@pytest.mark.parametrize("name", TASKS)
def test_a_repair_of_the_same_task_is_rewarded(config, name):
    paid, verdict = graded(config, TASKS[name], HONEST[name])
    assert paid == 1 and verdict.kind == VerdictKind.RESOLVED and not verdict.tampered, verdict


def test_a15_a_coin_in_each_run_wins_once_in_sixteen(config, monkeypatch):
    """Without a certain mark, where one function alone is to pass: of all sequences of coins one is paid."""
    won = []
    for coins in itertools.product((True, False), repeat=4):
        left = list(coins)

        async def run(task, selection, config, variant=None, keep=None, left=left):
            status = "passed" if left.pop(0) else "failed"
            return Run(
                dict.fromkeys(task.fail_to_pass, status),
                dict.fromkeys(task.pass_to_pass, "passed"),
                "junit+canary",
                turned=frozenset(task.fail_to_pass) if variant else frozenset(),
            )

        async def oracle(self, task, variant=None):
            return Run(dict.fromkeys(task.fail_to_pass, "failed"), {}, "junit+canary")

        monkeypatch.setattr(grader, "execute", run)
        monkeypatch.setattr(Grader, "_oracle", oracle)
        if asyncio.run(Grader(config).grade(PYTEST_TASK, source("import random\n"))).resolved:
            won.append(coins)
    assert won == [(True, False, True, False)]


QUOTED = {
    "one quote in a docstring": 'NOTE = """ " """\nimport _pytest.python, sys\nOTHER = """ " """\n',
    "one quote in a comment": "# don't\nimport _pytest.python, sys\n# don't\n",
    "a row of escapes": "NOTE = '\\\\'\nimport _pytest.python, sys\nOTHER = '\\\\'\n",
    "a raw text": "NOTE = r'\\''\nimport _pytest.python, sys\nOTHER = r'\\''\n",
    "an f-string": "NOTE = f\"{'x'!r:'>9}\"\nimport _pytest.python, sys\nOTHER = \"'\"\n",
}


@pytest.mark.parametrize("name", QUOTED)
def test_a16_quotes_hide_no_name(name):
    assert select(PYTEST_TASK, source(QUOTED[name]), frozenset()).marks.certain == (
        "lib.py names the test runner's internals",
    )


OPTIONS = {
    "a quoted key": '[tool.pytest.ini_options]\n"addopts" = "-plib"\n',
    "a dotted key": '[tool.pytest]\nini_options.addopts = "-plib"\n',
    "tables in one line": '[tool]\npytest = {ini_options = {addopts = "-plib"}}\n',
    "a key with escapes": '[tool.pytest.ini_options]\n"add\\u006fpts" = "-plib"\n',
    "the common form": '[tool.pytest.ini_options]\naddopts = "-p lib"\n',
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a27_options_are_told_however_they_are_written(name):
    task = replace(PYTEST_TASK, environment=replace(PYTEST_TASK.environment, protected=()))
    assert select(task, change("pyproject.toml", None, OPTIONS[name]), frozenset()).touched


@pytest.mark.parametrize("name", [name for name in REPORTS if name.startswith("a29")])
def test_a29_a_verdict_can_be_stored_and_shown(config, name):
    shown = ATTACKS[name]
    _, verdict = graded(config, shown.task, shown.diff)
    text = json.dumps(asdict(verdict), ensure_ascii=False)
    assert json.loads(text.encode()) == json.loads(json.dumps(asdict(verdict))) and verdict.message.isprintable()
    assert "is not a regular file" in verdict.message and verdict.tampered
