"""Attacks by what a diff puts where: none of it reaches the grading sandbox, the rest is graded, and who touched the
judge is told."""

import asyncio
import sys
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, UNITTEST_TASK, WRONG, change, judge, paths, runners

from coderepairrl.diffs import split_diff
from coderepairrl.grading.protected import select
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.types import VerdictKind

INSTALLED = frozenset(sys.stdlib_module_names) | {"xmlrunner", "pytest"}

PASS_ALL = "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
PLUGIN = """import pytest

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    out = yield
    report = out.get_result()
    if "canary" not in item.name and "Hidden" in item.nodeid:
        report.outcome = "passed"
"""
DROPPED = {  # never reach the grading sandbox
    "conftest": ("conftest.py", PLUGIN),
    "nested conftest": ("tests/conftest.py", PLUGIN),
    "the hidden test": (
        "test_hidden.py",
        "import unittest\nclass Hidden(unittest.TestCase):\n    def test_0(self): pass\n",
    ),
    "sitecustomize": ("sitecustomize.py", PASS_ALL),
    "usercustomize": ("usercustomize.py", PASS_ALL),
    "path file": ("evil.pth", "import lib\n"),
    "a new test runner": ("xmlrunner/__main__.py", "print('OK')\n"),
    "a new pytest": ("pytest.py", "print('1 passed')\n"),
    "a new unittest": ("unittest/__init__.py", "print('OK')\n"),
    "a new module of the library": ("traceback.py", PASS_ALL),
    "an entry point": ("evil-1.0.dist-info/entry_points.txt", "[pytest11]\nevil = lib\n"),
    "pytest.ini": ("pytest.ini", "[pytest]\naddopts = -p lib\n"),
    "git attributes": (".gitattributes", "* filter=x\n"),
    "a hook of git": (".git/hooks/post-checkout", "#!/bin/sh\ntouch /tmp/x\n"),
    "compiled code": ("__pycache__/lib.cpython-311.pyc", "x\n"),
    "options of tox": ("tox.ini", "[pytest]\naddopts = -p lib\n"),
    "a module beside the hidden tests": ("tests/pytest.py", "print('1 passed')\n"),
}
TOLD = {
    "conftest",
    "nested conftest",
    "sitecustomize",
    "usercustomize",
    "path file",
    "a new test runner",
    "a new pytest",
    "a new unittest",
    "a new module of the library",
    "an entry point",
    "pytest.ini",
    "a hook of git",
    "compiled code",
    "options of tox",
    "a module beside the hidden tests",
}  # with Verdict.tampered


@pytest.mark.parametrize("attack", DROPPED)
def test_protected_paths_are_dropped_and_the_rest_is_graded(attack):
    path, text = DROPPED[attack]
    task = replace(PYTEST_TASK, hidden_tests=PYTEST_TASK.hidden_tests | {"test_hidden.py": "x = 1\n"})
    selection = select(task, change(path, None, text) + FIX, INSTALLED)
    assert paths(selection.dropped_paths) == (path,) and selection.applied == FIX
    assert bool(selection.touched) == (attack in TOLD) and not selection.marks.certain


LINK_OUT = (
    "diff --git a/{0} b/{0}\nnew file mode 120000\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+{1}\n"
    "\\ No newline at end of file\n"
)
BINARY = (
    "diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..f76dd23\nGIT binary patch\nliteral 1\n"
    "IcmZPo000310RR91\n\n"
)
RENAME = "diff --git a/lib.py b/conftest.py\nsimilarity index 100%\nrename from lib.py\nrename to conftest.py\n"
RUNNER = "protected since test runners or git read it by themselves ({})"
REASONS = {  # name -> (diff, what dropped_paths says); each is said to people, and only some accuse
    "a hook of pytest": (
        change("pkg/conftest.py", None, "x = 1\n"),
        [f"pkg/conftest.py: {RUNNER.format('conftest.py')}"],
    ),
    "settings": (change("setup.cfg", None, "x = 1\n"), [f"setup.cfg: {RUNNER.format('setup.cfg')}"]),
    "git's own": (change(".gitignore", None, "x\n"), [f".gitignore: {RUNNER.format('.git*')}"]),
    "the environment's": (
        change("tests/a.py", None, "x = 1\n"),
        ["tests/a.py: protected by the task's environment (tests/)"],
    ),
    "a hidden test": (
        change("tests/test_hidden.py", None, "x = 1\n"),
        ["tests/test_hidden.py: a place of the hidden tests"],
    ),
    "a folder of one": (
        change("tests/test_hidden.py/a", None, "x = 1\n"),
        ["tests/test_hidden.py/a: a place of the hidden tests"],
    ),
    "start-up code": (
        change("sitecustomize.py", None, "x = 1\n"),
        ["sitecustomize.py: read by the interpreter or by git, not by people"],
    ),
    "a module that is imported": (change("traceback.py", None, "x = 1\n"), ["traceback.py: hides an installed module"]),
    "a module that is not": (change("turtle.py", None, "x = 1\n"), ["turtle.py: has an installed module's name"]),
    "outside": (change("../a.py", None, "x = 1\n"), ["../a.py: a path outside the checkout"]),
    "a link outside": (LINK_OUT.format("e", "/etc/passwd"), ["e: a symlink or submodule"]),
    "a link to nothing": (LINK_OUT.format("e", "gone"), ["e: a symlink to other than one file of the checkout"]),
    "a binary file": (BINARY, ["x.bin: a binary file"]),
    "no path": ("diff --git \n", ["(no path): names no path"]),
    "its partner": (
        RENAME,
        [
            f"conftest.py: {RUNNER.format('conftest.py')}",
            f"lib.py: in one section with conftest.py, {RUNNER.format('conftest.py')}",
        ],
    ),
    "two": (
        change("tox.ini", None, "x\n") + FIX + BINARY,
        [f"tox.ini: {RUNNER.format('tox.ini')}", "x.bin: a binary file"],
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_why_a_path_was_left_out_is_said(case):
    diff, said = REASONS[case]
    assert list(select(PYTEST_TASK, diff, INSTALLED, loaded=INSTALLED - {"turtle"}).dropped_paths) == said


@runners
def test_dropped_paths_are_named_and_change_nothing(config, runner):
    attacks = {
        path: text
        for path, text in DROPPED.values()
        if path not in (("tests/pytest.py",) if runner == "xmlrunner" else ("test_hidden.py",))
    }
    attack = "".join(change(path, None, text) for path, text in attacks.items())
    honest, cheat = judge(config, runner, attack + FIX), judge(config, runner, attack)
    assert honest.resolved and set(paths(honest.dropped_paths)) == set(attacks) and not cheat.resolved
    assert (
        honest.kind == VerdictKind.RESOLVED
        and cheat.kind == VerdictKind.TAMPERED
        and honest.tampered == cheat.tampered != ()
    )


@pytest.mark.parametrize(
    "diff, path",
    [
        (
            "diff --git a/evil b/evil\nnew file mode 120000\n--- /dev/null\n+++ b/evil\n@@ -0,0 +1 @@\n"
            "+/etc/passwd\n\\ No newline at end of file\n",
            "evil",
        ),
        ("--- /dev/null\n+++ b/../../evil.py\n@@ -0,0 +1 @@\n+x\n", "../../evil.py"),
        ("--- /dev/null\n+++ /etc/evil.py\n@@ -0,0 +1 @@\n+x\n", "/etc/evil.py"),
        (
            "diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..f76dd23\nGIT binary patch\n"
            "literal 1\nIcmZPo000310RR91\n\n",
            "x.bin",
        ),
        (
            "diff --git a/lib.py b/conftest.py\nsimilarity index 100%\nrename from lib.py\nrename to conftest.py\n",
            "conftest.py",
        ),
        (
            'diff --git "a/conf\\164est.py" "b/conf\\164est.py"\nnew file mode 100644\n--- /dev/null\n'
            '+++ "b/conf\\164est.py"\n@@ -0,0 +1 @@\n+x\n',
            "conftest.py",
        ),
        ("diff --git a/conftest.py b/conftest.py\nnew file mode 100644\nindex 0000000..e69de29\n", "conftest.py"),
        ("--- /dev/null\n+++ b/conftest.py\t2020-01-01\n@@ -0,0 +1 @@\n+x\n", "conftest.py"),
    ],
)
def test_unusual_sections_are_dropped(config, diff, path):
    verdict = judge(config, "xmlrunner", diff + FIX)
    assert path in paths(verdict.dropped_paths) and verdict.resolved, verdict


def test_a_header_in_a_hunk_is_not_a_header():
    text = "--- a/conftest.py\n+++ b/conftest.py\n"
    [only] = split_diff(change("notes.md", "-- a/conftest.py\n++ b/conftest.py\n", text))
    assert only.paths == {"notes.md"} and "-- a/conftest.py" in only.removed[0] + only.removed[1]


def test_two_readings_of_one_diff_are_refused(config):
    """Whatever a diff is made of, git must not write a path that the filter did not see."""

    async def main():
        async with start_sandbox(config, UNITTEST_TASK) as sandbox:
            return await sandbox.apply(change("conftest.py", None, "x\n") + FIX, frozenset({"lib.py"}))

    assert "conftest.py" in asyncio.run(main())


def test_the_hidden_tests_win_over_files_and_folders_of_the_same_name(config):
    for diff in (change("test_hidden.py", None, "x = 1\n"), change("test_hidden.py/x.py", None, "x = 1\n")):
        verdict = judge(config, "xmlrunner", diff + FIX)
        assert verdict.resolved and len(verdict.dropped_paths) == 1


# ---- what the oracle's own patch touches may be touched


@pytest.mark.parametrize(
    "path",
    [
        "conftest.py",
        "src/_pytest/junitxml.py",
        "setup.cfg",
        "tests/helpers.py",
        ".gitattributes",
        "django/test/runner.py",
        "sitecustomize.py",
    ],
)
def test_protection_never_breaks_the_oracles_patch(path):
    oracle = change(path, "x = 1\n", "x = 2\n") + FIX
    task = replace(PYTEST_TASK, oracle_patch=oracle)
    selection = select(task, oracle, INSTALLED)
    assert selection.applied == oracle and selection.dropped_paths == selection.touched == ()
    other = change("pkg/" + path, None, "x = 1\n")
    assert select(task, other, INSTALLED).applied == select(PYTEST_TASK, other, INSTALLED).applied  # but only that path


def test_the_oracles_own_binary_is_no_attack_but_its_hidden_tests_stay_protected():
    binary = (
        "diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..f76dd23\nGIT binary patch\nliteral 1\n"
        "IcmZPo000310RR91\n\n"
    )
    link = "diff --git a/x.bin b/x.bin\nnew file mode 120000\n--- /dev/null\n+++ b/x.bin\n@@ -0,0 +1 @@\n+/etc/passwd\n"
    hidden = change("tests/test_hidden.py", "x = 1\n", "x = 2\n")
    task = replace(PYTEST_TASK, oracle_patch=binary + hidden)
    assert select(task, binary, INSTALLED).applied == binary
    assert select(task, link, INSTALLED).applied == select(task, hidden, INSTALLED).applied == ""


def test_paths_of_the_test_patch_are_protected_and_it_is_laid_over_the_diff(config):
    new = (
        "import unittest\n\nfrom lib import f\n\n\nclass Hidden(unittest.TestCase):\n    def test_0(self):\n"
        "        self.assertEqual(f(1), 2)\n"
    )
    changes = {
        "hidden_tests": {},
        "test_patch": change("test_hidden.py", None, new)
        + change("test_lib.py", UNITTEST_TASK.files["test_lib.py"], None),
        "fail_to_pass": ("test_hidden.Hidden::test_0",),
        "pass_to_pass": (),
    }
    cheat = change("test_hidden.py", None, new.replace("2)", "3)"))
    honest, forged = judge(config, "xmlrunner", cheat + FIX, **changes), judge(config, "xmlrunner", cheat, **changes)
    assert honest.resolved and paths(honest.dropped_paths) == ("test_hidden.py",) and not forged.resolved


# ---- what is honest stays so

HONEST = {  # name -> (path, text): added to the repair, whose verdict it must not change
    "mentions": (
        "notes.py",
        "# os._exit(0) skips atexit; pytest_runtest_makereport, sys.modules and junitxml are words\n"
        "TEXT = 'unittest.TestCase.run = None; _pytest'\n",
    ),
    "its own tests": ("tests/test_more.py", "import pytest\n\n\ndef test_more():\n    assert True\n"),
    "a fixture": ("conftest.py", "import sys\n\nsys.path.insert(0, '.')\n"),
    "reads its own modules": (
        "registry.py",
        "import atexit\nimport sys\n\natexit.register(lambda: None)\nHAVE = 'json' in sys.modules\n",
    ),
    "a helper that forks": (
        "fork.py",
        "import os\n\n\ndef child(work):\n    if os.fork() == 0:\n        work()\n        os._exit(0)\n",
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_repair_is_resolved_whatever_words_it_holds(config, case):
    path, text = HONEST[case]
    verdict = judge(config, "pytest", change(path, None, text) + FIX)
    assert (verdict.kind, verdict.resolved, verdict.message) == (VerdictKind.RESOLVED, True, ""), verdict
    assert bool(verdict.tampered) == (case == "a helper that forks")  # told, and paid all the same


@pytest.mark.parametrize("named", ["golden/one", "one", "./golden/one", "data/../golden/one"])
@pytest.mark.parametrize("suffix", ["", ".txt", ".json", ".yaml", ".csv", ".html", ".out"])
def test_what_the_tests_compare_with_is_theirs(named, suffix):
    test = f"from lib import f\n\n\ndef test_f():\n    assert str(f(1)) == open({named + suffix!r}).read().strip()\n"
    path = f"golden/one{suffix}"
    task = replace(
        PYTEST_TASK, files={"lib.py": WRONG, path: "2\n"}, hidden_tests={"tests/test_hidden.py": test}, oracle_patch=FIX
    )
    diff = change(path, "2\n", "3\n") + FIX
    selection = select(task, diff, frozenset())
    assert (
        selection.left_out == {path: "data that the tests name: what they compare with is theirs"}
        and not selection.touched
    )
    assert selection.applied_paths == {"lib.py"}
    assert not select(replace(task, oracle_patch=diff), diff, frozenset()).left_out  # whose repair is of that file
    assert not select(task, change("golden/other", None, "3\n") + FIX, frozenset()).left_out
