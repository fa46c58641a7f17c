"""Projects whose own settings keep the canary from failing: honest diffs get the verdict of their tests, attacks none
that pays."""

import asyncio
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, RIGHT, WRONG, change, paths, source
from projects_helpers import PROJECTS, arguments, project

from coderepairrl.grading import grader as tests
from coderepairrl.grading.canary import takes_canary, without_canary
from coderepairrl.grading.judge import TIME_LIMIT, Run
from coderepairrl.rewards import Grader
from coderepairrl.types import VerdictKind

HONEST = {  # diff -> the verdict of its tests
    "gold": (FIX, VerdictKind.RESOLVED),
    "gold with an import": (change("lib.py", WRONG, "import os\n" + RIGHT), VerdictKind.RESOLVED),
    "empty": ("", VerdictKind.UNRESOLVED),
    "another mistake": (change("lib.py", WRONG, WRONG.replace("a + 2", "a + 3")), VerdictKind.UNRESOLVED),
    "does not import": (change("lib.py", WRONG, "def f(:\n"), VerdictKind.UNRESOLVED),
}
FORGE = """
import sys, os, re
folder = re.search(r"(/[^ =]*junit)", " ".join(sys.argv))[1]
cases = "".join(f'<testcase classname="{c}" name="{n}"/>' for c, n in (test.rsplit("::", 1) for test in TESTS))
def forge():
    for old in os.listdir(folder): os.remove(folder + "/" + old)
    open(folder + "/report.xml", "w").write("<testsuite>" + cases + "</testsuite>")
"""
SOURCES = {
    "leaves with success": "import os; os._exit(0)\n",
    "leaves with success at its end": "import atexit, os\natexit.register(os._exit, 0)\n",
    "forges and leaves with success": FORGE + "forge(); os._exit(0)\n",
    "forges and leaves without": FORGE + "forge(); os._exit(1)\n",
    "forges at exit": FORGE + "import atexit\natexit.register(forge)\n",
    "patches the runner": "import _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n",
    "equals everything": "class Any(int):\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "    __hash__ = int.__hash__\n"
    "_wrong = lambda a: Any(a)\n",
    "skips": "import pytest\ndef _wrong(a): pytest.skip('later')\n",
    "prints success": "print('1 passed\\nPASSED tests/test_hidden.py::test_keep')\n",
}
ATTACKED = ("stops at the first failure", "a marker filter", "no unittest", "an exit code of its own")


def grade(config, task, *diffs):
    async def main():
        grader = Grader(config)
        return [await grader.grade(task, diff) for diff in diffs]

    return asyncio.run(main())


def attack(task, code):
    ids = (*task.fail_to_pass, *task.pass_to_pass)
    return source(
        f"TESTS = {ids!r}\n{code}\n\n", WRONG.replace("return a + 2", "return _wrong(a)") if "_wrong" in code else WRONG
    )


@pytest.mark.parametrize("name", PROJECTS)
def test_honest_diffs_of_such_a_project_get_the_verdict_of_their_tests(config, name):
    verdicts = grade(config, PROJECTS[name], *(diff for diff, _ in HONEST.values()))
    for verdict, (case, (_, kind)) in zip(verdicts, HONEST.items(), strict=True):
        assert (verdict.kind, verdict.tampered) == (kind, ()), (case, verdict)
    assert verdicts[0].evidence == ("log" if "log" in name else "junit"), verdicts[0]


@pytest.mark.parametrize("name", ATTACKED)
def test_attacks_on_such_a_project_do_not_pay(config, name):
    task = PROJECTS[name]
    for case, verdict in zip(
        SOURCES, grade(config, task, *(attack(task, code) for code in SOURCES.values())), strict=True
    ):
        assert not verdict.resolved and verdict.kind in (VerdictKind.TAMPERED, VerdictKind.UNRESOLVED), (case, verdict)
        assert (
            case not in ("leaves with success", "forges and leaves with success", "patches the runner")
            or verdict.kind == VerdictKind.TAMPERED
        ), (case, verdict)


SETTINGS = {  # what a project may say, said by a diff: the canary is gone only from its own run
    "stops": "addopts = '-x'\n",
    "filters": "addopts = '-k keep'\n",
    "no unittest": "addopts = '-p no:unittest'\n",
    "a plugin": "addopts = '-p lib'\n",
    "no failures": "addopts = '-p no:unittest -p lib'\n",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_diff_cannot_turn_the_canary_off_by_itself(config, name):
    open_task = replace(PYTEST_TASK, environment=replace(PYTEST_TASK.environment, protected=("tests/",)))
    settings = change("pyproject.toml", None, "[tool.pytest.ini_options]\n" + SETTINGS[name])
    hooks = (
        "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_pyfunc_call():\n"
        "    (yield).force_result(True)\n\n\n"
    )
    for verdict in grade(
        config,
        open_task,
        settings + attack(open_task, FORGE + "forge(); os._exit(0)\n"),
        settings + source(hooks),
        settings,
    ):
        assert not verdict.resolved and verdict.kind == VerdictKind.TAMPERED, verdict


def test_where_a_project_stops_at_the_first_failure_the_counter_check_still_counts(config):
    """The canary comes last and fails under the oracle's patch; with the tests turned round it never comes."""
    task = project({"pytest.ini": "[pytest]\naddopts = -x\n"})
    code = (
        FORGE.replace(
            "def forge",
            """module = re.search("(test_[0-9a-f]+)( |$)", " ".join(sys.argv))[1]
case, name = re.findall("(Test[0-9a-f]{9,}|test_[0-9a-f]{9,})", open(module + ".py").read())
cases += f'<testcase classname="{module}.{case}" name="{name}"><failure/></testcase>'
def forge""".replace("( |$)", "[.]py"),
        )
        + "import atexit\natexit.register(forge)\n"
    )
    gold, forged, attempt = grade(config, task, HONEST["gold with an import"][0], attack(task, code), "")
    assert (gold.kind, gold.evidence, attempt.kind, attempt.tampered) == (
        VerdictKind.RESOLVED,
        "junit+canary",
        VerdictKind.UNRESOLVED,
        (),
    )
    # the scan is certain of nothing
    assert (
        forged.kind == VerdictKind.TAMPERED
        and "also where it must fail" in forged.message
        and len(forged.tampered) == 1
    )


@pytest.mark.parametrize(
    "path, text",
    [
        ("pytest.ini", "[pytest]\naddopts = -x\n"),
        ("pytest.ini", "[pytest]\naddopts = -p no:unittest\n"),
        ("setup.cfg", "[tool:pytest]\naddopts = -m unit\n"),
        (
            "conftest.py",
            "def pytest_collection_modifyitems(items):\n"
            "    items[:] = [item for item in items if '/' in item.nodeid]\n",
        ),
        (
            "tests/conftest.py",
            "import pytest\n\n\n@pytest.fixture(autouse=True)\ndef skip():\n    pytest.skip('slow')\n",
        ),
    ],
)
def test_settings_of_a_diff_are_left_out_and_excuse_nothing(config, path, text):
    cheat, honest = grade(config, PYTEST_TASK, change(path, None, text), change(path, None, text) + FIX)
    assert not cheat.resolved and cheat.dropped_paths == honest.dropped_paths and paths(honest.dropped_paths) == (path,)
    assert (honest.kind, honest.evidence) == (VerdictKind.RESOLVED, "junit+canary")


def test_where_the_oracle_touches_the_hooks_a_diffs_own_hooks_excuse_nothing(config):
    """A conftest.py that the repair may change is applied: what excuses is the oracle's own run, whose hooks spare the
    canary."""
    task = replace(
        PYTEST_TASK,
        files=PYTEST_TASK.files | {"conftest.py": "x = 1\n"},
        oracle_patch=change("conftest.py", "x = 1\n", "x = 2\n") + FIX,
    )
    hooks = (
        "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n"
        "    items[:] = [item for item in items if '/' in item.nodeid]\n"
    )
    passing = "\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_pyfunc_call():\n    (yield).force_result(True)\n"
    gold, hidden, forced = grade(
        config,
        task,
        task.oracle_patch,
        change("conftest.py", "x = 1\n", hooks) + FIX,
        change("conftest.py", "x = 1\n", hooks + passing),
    )
    assert (
        gold.kind == VerdictKind.RESOLVED
        and hidden.kind == forced.kind == VerdictKind.TAMPERED
        and "which must fail, is missing" in forced.message
    )


def test_without_a_canary_and_a_test_that_can_be_turned_round_no_pass_is_proven(config, monkeypatch):
    monkeypatch.setattr("coderepairrl.grading.judge.turn_files", lambda *_: ({}, frozenset()))
    spoilt, usual = (grade(config, task, FIX, "")[0] for task in (PROJECTS["a marker filter"], PYTEST_TASK))
    assert (spoilt.kind, spoilt.resolved, usual.kind) == (
        VerdictKind.ENVIRONMENT_ERROR,
        False,
        VerdictKind.RESOLVED,
    ) and "no pass is proven" in spoilt.message


def test_a_time_limit_of_the_oracles_run_excuses_and_accuses_nobody(config, monkeypatch):
    async def slow(self, task, variant=None):
        return Run({}, {}, "none", f"{TIME_LIMIT}: the machine was busy", timed_out=True)

    monkeypatch.setattr(Grader, "_oracle", slow)
    grader = Grader(config)
    verdict = asyncio.run(grader.grade(PROJECTS["a marker filter"], FIX))
    # tried again
    assert (
        verdict.kind == VerdictKind.ENVIRONMENT_ERROR
        and not verdict.resolved
        and not verdict.tampered
        and not grader._verdicts
    )


def test_a_task_without_an_oracle_is_judged_by_its_bare_checkout(config):
    task = replace(PROJECTS["a marker filter"], oracle_patch="")
    fixed, empty, forged = grade(config, task, FIX, "", attack(task, FORGE + "forge(); os._exit(0)\n"))
    assert (fixed.kind, fixed.evidence, empty.kind, forged.kind) == (
        VerdictKind.RESOLVED,
        "junit",
        VerdictKind.UNRESOLVED,
        VerdictKind.TAMPERED,
    )


def test_attacks_on_such_a_projects_log_do_not_pay(config):
    task = PROJECTS["a log and a filter"]
    say = (
        "import os\ndef say():\n    os.write(1, '\\n'.join(['', *(f'PASSED {test}' for test in TESTS), '']).encode())\n"
    )
    for end in ("say(); os._exit(0)\n", "say(); os._exit(1)\n", "import atexit\natexit.register(say)\n"):
        [verdict] = grade(config, task, attack(task, say + end))
        assert not verdict.resolved and verdict.kind in (VerdictKind.TAMPERED, VerdictKind.UNRESOLVED), (end, verdict)


def test_the_usual_task_costs_one_further_run_where_its_tests_pass(config, monkeypatch):
    monkeypatch.setattr("coderepairrl.grading.grader.is_free", lambda begun: False)

    async def main():
        grader = Grader(config)
        kinds = [(await grader.grade(PYTEST_TASK, diff)).kind for diff in (FIX, "", HONEST["another mistake"][0])]
        return kinds, grader.runs, grader.checks

    assert asyncio.run(main()) == ([VerdictKind.RESOLVED, VerdictKind.UNRESOLVED, VerdictKind.UNRESOLVED], 3, 1)


def test_a_command_without_its_canary_keeps_what_only_mentions_it():
    task = arguments(PYTEST_TASK, "-k", "test_f or {canary_module}")
    bare = without_canary(task)
    assert (
        takes_canary(task)
        and not takes_canary(bare)
        and bare.environment.test_command[3:5] == ("-k", "test_f or no_canary")
    )
    assert bare.environment.test_command[-1] == "{tests}" and tests.ROUNDS == 4
