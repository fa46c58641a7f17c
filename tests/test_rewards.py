"""The judge under attack, on real test runs; and what patch similarity must not be fooled by."""
import asyncio
import random
import sys
from dataclasses import replace
from difflib import unified_diff

import pytest
from pydantic import ValidationError

from coderepairrl.config import load
from coderepairrl.errors import ConfigError, SandboxError
from coderepairrl.rewards import Grader, RewardConfig, compute, grade, patch_similarity
from coderepairrl.rewards.diffs import split_diff
from coderepairrl.rewards.junit import ReportError, parse, read_reports
from coderepairrl.rewards.protected import select
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.types import Environment, Task

WRONG = "def f(a):\n    return a + 2\n\n\ndef g(a):\n    return a\n"
RIGHT = WRONG.replace("a + 2", "a + 1")
VISIBLE = "import unittest\n\nfrom lib import g\n\n\nclass Visible(unittest.TestCase):\n    def test_g(self):\n        self.assertEqual(g(1), 1)\n"
UNITTEST = """import unittest

from lib import f, g


class Hidden(unittest.TestCase):
    def test_0(self):
        self.assertEqual(f(1), 2)

    def test_1(self):
        self.assertEqual(f(5), 6)

    def test_keep(self):
        self.assertEqual(g(3), 3)

    @unittest.skip("not here")
    def test_skipped(self):
        pass
"""
PYTEST = """import pytest

from lib import f, g


class TestHidden:
    @pytest.mark.parametrize("a", [0, 5])
    def test_f(self, a):
        assert f(a) == a + 1


def test_keep():
    assert g(3) == 3
"""
XMLRUNNER_ENVIRONMENT = Environment("unittest", None, sys.executable, ("{python}", "-m", "xmlrunner", "{tests}", "{canary_module}", "-o", "{junit}"), test_timeout_s=20)
PYTEST_ENVIRONMENT = Environment(
    "pytest", None, sys.executable, protected=("tests/", "pyproject.toml"), test_timeout_s=20, variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    test_command=("{python}", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={junit}/report.xml", "-o", "junit_family=xunit1", "{tests}", "{canary_path}"))
UNITTEST_TASK = Task(
    "unittest-1", "", XMLRUNNER_ENVIRONMENT, {"lib.py": WRONG, "test_lib.py": VISIBLE}, {"test_hidden.py": UNITTEST}, ("test_hidden",),
    ("test_hidden.Hidden::test_0", "test_hidden.Hidden::test_1"), ("test_hidden.Hidden::test_keep", "test_hidden.Hidden::test_skipped"), "")
PYTEST_TASK = Task(
    "pytest-1", "", PYTEST_ENVIRONMENT, {"lib.py": WRONG, "tests/test_lib.py": VISIBLE}, {"tests/test_hidden.py": PYTEST}, ("tests/test_hidden.py",),
    ("tests.test_hidden.TestHidden::test_f[0]", "tests.test_hidden.TestHidden::test_f[5]"), ("tests.test_hidden::test_keep",), "")
TASKS = {"xmlrunner": UNITTEST_TASK, "pytest": PYTEST_TASK}
runners = pytest.mark.parametrize("runner", TASKS)


def change(path, old, new):
    """The git diff of one file; None: it is not there."""
    lines = unified_diff((old or "").splitlines(True), (new or "").splitlines(True), f"a/{path}" if old is not None else "/dev/null", f"b/{path}" if new is not None else "/dev/null")
    mode = "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}" + "".join(lines)


FIX = change("lib.py", WRONG, RIGHT)


@pytest.fixture
def config(tmp_path):
    return SandboxConfig(scratch=str(tmp_path))


def judge(config, runner, diff, **changes):
    return asyncio.run(grade(replace(TASKS[runner], **changes), diff, config))


# ---- verdicts

@runners
@pytest.mark.parametrize("kind", ["bubblewrap", "local"])
def test_the_fix_is_resolved_and_nothing_is_not(tmp_path, runner, kind):
    config = SandboxConfig(scratch=str(tmp_path), kind=kind)
    good, empty = judge(config, runner, FIX), judge(config, runner, "")
    assert (good.resolved, good.evidence, good.message, good.dropped_paths) == (True, "junit+canary", "", ())
    assert set(good.fail_to_pass.values()) == {"passed"} and set(good.pass_to_pass.values()) <= {"passed", "skipped"}
    assert (empty.resolved, empty.evidence) == (False, "junit+canary")
    assert set(empty.fail_to_pass.values()) == {"failed"} and empty.pass_to_pass == good.pass_to_pass
    assert list(tmp_path.glob("*/live/*")) == []


@runners
def test_breaking_what_worked_is_not_resolved(config, runner):
    verdict = judge(config, runner, change("lib.py", WRONG, RIGHT.replace("    return a\n", "    return -a\n")))
    assert not verdict.resolved and set(verdict.fail_to_pass.values()) == {"passed"} and "failed" in verdict.pass_to_pass.values()


@runners
def test_a_repair_that_does_not_import_is_missing_tests(config, runner):
    verdict = judge(config, runner, change("lib.py", WRONG, "def f(:\n"))
    assert not verdict.resolved and set(verdict.fail_to_pass.values()) == {"missing"}


@pytest.mark.parametrize("diff", ["no diff at all", "--- a/lib.py\n+++ b/lib.py\n@@ -1,2 +1,2 @@\n def x():\n-    return\n+    pass\n", FIX + FIX,
                                  "diff --git a/lib.py b/lib.py\n", "--- a/lib.py\n+++ b/lib.py\n@@ -1,9 +1,9 @@\n cut", FIX.replace("lib.py", "absent.py")])
def test_diffs_that_do_not_apply_are_verdicts(config, diff):
    verdict = judge(config, "xmlrunner", diff)
    assert (verdict.resolved, verdict.evidence) == (False, "none") and verdict.message.startswith("the diff does not apply: "), verdict
    assert "\n" not in verdict.message


def test_random_bytes_as_diffs_never_raise(config):
    rng = random.Random(0)
    pieces = [FIX[:60], "diff --git a/x b/x\n", "@@ -1 +1 @@\n", "--- a/", "+++ b/lib.py\n", "\0", "é", "\udcff", "\n", "-x\n", "+y\n", "rename from lib.py\n", "GIT binary patch\n", '"a\\303"', "new file mode 120000\n"]

    async def main():
        for _ in range(60):
            diff = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
            split_diff(diff), patch_similarity(diff, FIX), select(UNITTEST_TASK, diff, frozenset())
            async with start_sandbox(config, UNITTEST_TASK) as sandbox:
                await sandbox.apply(diff)

    asyncio.run(main())


def test_a_repair_that_hangs_is_a_time_limit(config):
    environment = replace(XMLRUNNER_ENVIRONMENT, test_timeout_s=1.0)
    verdict = judge(config, "xmlrunner", change("lib.py", WRONG, "while True:\n    pass\n"), environment=environment)
    assert (verdict.resolved, verdict.evidence) == (False, "none") and verdict.message.startswith("time limit")


def test_infrastructure_trouble_is_never_a_verdict(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError):
        judge(SandboxConfig(scratch=str(tmp_path / "file")), "xmlrunner", FIX)


# ---- attacks: the diff repairs nothing (`WRONG` stays), so resolved would be a lie

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
    "the hidden test": ("test_hidden.py", "import unittest\nclass Hidden(unittest.TestCase):\n    def test_0(self): pass\n"),
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
}


@pytest.mark.parametrize("attack", DROPPED)
def test_protected_paths_are_dropped_and_the_rest_is_graded(attack):
    path, text = DROPPED[attack]
    installed = frozenset(sys.stdlib_module_names) | {"xmlrunner", "pytest"}
    task = replace(UNITTEST_TASK, environment=replace(XMLRUNNER_ENVIRONMENT, protected=("tests/",)))
    selection = select(task, change(path, None, text) + FIX, installed)
    assert selection.dropped_paths == (path,) and selection.applied == FIX


@runners
def test_dropped_paths_are_named_and_change_nothing(config, runner):
    attacks = {path: text for path, text in DROPPED.values() if runner == "xmlrunner" or path != "test_hidden.py"}
    attack = "".join(change(path, None, text) for path, text in attacks.items())
    honest, cheat = judge(config, runner, attack + FIX), judge(config, runner, attack)
    assert honest.resolved and set(honest.dropped_paths) == set(attacks) and not cheat.resolved


@pytest.mark.parametrize("diff, path", [
    ("diff --git a/evil b/evil\nnew file mode 120000\n--- /dev/null\n+++ b/evil\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n", "evil"),
    ("--- /dev/null\n+++ b/../../evil.py\n@@ -0,0 +1 @@\n+x\n", "../../evil.py"),
    ("--- /dev/null\n+++ /etc/evil.py\n@@ -0,0 +1 @@\n+x\n", "/etc/evil.py"),
    ("diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..f76dd23\nGIT binary patch\nliteral 1\nIcmZPo000310RR91\n\n", "x.bin"),
    ("diff --git a/lib.py b/conftest.py\nsimilarity index 100%\nrename from lib.py\nrename to conftest.py\n", "conftest.py"),
    ('diff --git "a/conf\\164est.py" "b/conf\\164est.py"\nnew file mode 100644\n--- /dev/null\n+++ "b/conf\\164est.py"\n@@ -0,0 +1 @@\n+x\n', "conftest.py"),
    ("diff --git a/conftest.py b/conftest.py\nnew file mode 100644\nindex 0000000..e69de29\n", "conftest.py"),
    ("--- /dev/null\n+++ b/conftest.py\t2020-01-01\n@@ -0,0 +1 @@\n+x\n", "conftest.py"),
])
def test_unusual_sections_are_dropped(config, diff, path):
    verdict = judge(config, "xmlrunner", diff + FIX)
    assert path in verdict.dropped_paths and verdict.resolved, verdict


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


SOURCE = {  # code under test that attacks from inside the process: caught by what
    "prints success and leaves": ("print('OK\\n2 passed'); import os; os._exit(0)\n", "no report"),
    "leaves at the end": ("import atexit, os, sys\ndef leave():\n    sys.stdout.flush(); os._exit(0)\natexit.register(leave)\n", "exit code is 0"),
    "makes every assertion pass": (PASS_ALL + "import builtins\n", "canary test, which must fail, is"),
    "writes the report itself": (
        "import sys, os, re\nfolder = next((re.sub('.*=|/report.xml', '', a) for a in sys.argv if 'junit' in a and '/' in a))\n"
        "cases = ''.join(f'<testcase classname=\"{c}\" name=\"{n}\"/>' for c, n in TESTS)\n"
        "open(folder + '/report.xml', 'w').write('<testsuite>' + cases + '</testsuite>')\nos._exit(0)\n", "canary test, which must fail, is missing"),
    "declares entities": (
        "import sys, os, re\nfolder = next((re.sub('.*=|/report.xml', '', a) for a in sys.argv if 'junit' in a and '/' in a))\n"
        "open(folder + '/report.xml', 'w').write('<!DOCTYPE x [<!ENTITY a \"b\">]><testsuite>&a;</testsuite>')\nos._exit(1)\n", "document type"),
    "reports by a link": (
        "import sys, os, re\nfolder = next((re.sub('.*=|/report.xml', '', a) for a in sys.argv if 'junit' in a and '/' in a))\n"
        "os.symlink('/etc/passwd', folder + '/report.xml')\nos._exit(1)\n", "not a regular file"),
}


@runners
@pytest.mark.parametrize("attack", SOURCE)
def test_attacks_from_the_source_under_test_are_caught(config, runner, attack):
    code, message = SOURCE[attack]
    if attack == "makes every assertion pass" and runner == "pytest":  # plain asserts are no method calls: patch the runner
        code = "import _pytest.runner, _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n" \
               "import _pytest.unittest\n_pytest.unittest.TestCaseFunction.runtest = lambda self: None\n"
    tests = [tuple(test.split("::")) for test in (*TASKS[runner].fail_to_pass, *TASKS[runner].pass_to_pass)]
    verdict = judge(config, runner, change("lib.py", WRONG, f"TESTS = {tests!r}\n" + code + WRONG))
    assert not verdict.resolved and verdict.evidence == "none" and message in verdict.message, verdict


FORGERY = '''
import sys, os, re
argv = " ".join(sys.argv)
folder = re.search(r"(/[^ =]*junit)", argv)[1]
module = re.search(r"(test_[0-9a-f]{16})", argv)[1]
case, name = re.findall(r"(Test[0-9a-f]{16}|test_[0-9a-f]{16})", open(module + ".py").read())
cases = "".join(f'<testcase classname="{c}" name="{n}"/>' for c, n in TESTS)
canary = f'<testcase classname="{module}.{case}" name="{name}"><failure/></testcase>'
open(folder + "/report.xml", "w").write("<testsuite>" + cases + canary + "</testsuite>")
os._exit(1)
'''


@runners
def test_known_limit_code_written_against_this_very_judge_wins(config, runner):
    """Honest about the limit: a report made in the process under test cannot prove that the process was honest. Forging it
    takes reading argv, the canary's source and the hidden ids; guards over the diff's text are the answer, not this file."""
    task = TASKS[runner]
    tests = [tuple(test.split("::")) for test in (*task.fail_to_pass, *task.pass_to_pass)]
    verdict = judge(config, runner, change("lib.py", WRONG, f"TESTS = {tests!r}\n" + FORGERY + WRONG))
    assert verdict.resolved and verdict.evidence == "junit+canary"


def test_the_hidden_tests_win_over_files_and_folders_of_the_same_name(config):
    for diff in (change("test_hidden.py", None, "x = 1\n"), change("test_hidden.py/x.py", None, "x = 1\n")):
        verdict = judge(config, "xmlrunner", diff + FIX)
        assert verdict.resolved and len(verdict.dropped_paths) == 1


# ---- reports

def test_the_worst_status_of_a_test_counts(tmp_path):
    one = '<testsuite><testcase classname="a.B" name="c[é]"><failure/></testcase><testcase classname="a.B" name="d"/><testcase classname="a" name="e"><skipped/></testcase></testsuite>'
    (tmp_path / "b.xml").write_text(one)
    (tmp_path / "a.xml").write_text(one.replace("<failure/>", ""))
    (tmp_path / "note.txt").write_text("no report")
    assert read_reports(tmp_path) == {"a.B::c[é]": "failed", "a.B::d": "passed", "a::e": "skipped"}


@pytest.mark.parametrize("data", [b"", b"<a>", b"not xml", b'<!DOCTYPE a><a/>', "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>".encode("utf-16"), b"\xff\xfe"])
def test_what_is_no_report_is_refused(data):
    with pytest.raises(ReportError):
        parse(data)


# ---- the grader's memory

def test_the_same_patch_is_run_once(config):
    grader = Grader(config)
    dropped = change("conftest.py", None, "x = 1\n")

    async def main():
        return await asyncio.gather(*(grader.grade(UNITTEST_TASK, diff) for diff in (FIX, FIX, dropped + FIX, "", ""))), await grader.grade(UNITTEST_TASK, FIX)

    first, again = asyncio.run(main())
    assert [verdict.resolved for verdict in first] == [True, True, True, False, False] and again.resolved
    assert (grader.runs, grader.hits) == (2, 4)
    assert [verdict.dropped_paths for verdict in first] == [(), (), ("conftest.py",), (), ()]


def test_a_cancelled_waiter_does_not_stop_the_others(config, tmp_path):
    grader = Grader(config)

    async def main():
        one, two = (asyncio.create_task(grader.grade(UNITTEST_TASK, FIX)) for _ in range(2))
        await asyncio.sleep(0.05)
        one.cancel()
        verdict = await two
        alone = asyncio.create_task(grader.grade(UNITTEST_TASK, ""))
        await asyncio.sleep(0.05)
        alone.cancel()
        await asyncio.wait([one, alone])
        return verdict, alone.cancelled()

    verdict, cancelled = asyncio.run(main())
    assert verdict.resolved and cancelled and not grader._running and not grader._waiting
    assert list(tmp_path.glob("*/live/*")) == []


def test_time_limits_and_errors_are_not_remembered(config, tmp_path):
    grader = Grader(config)
    slow = replace(UNITTEST_TASK, environment=replace(XMLRUNNER_ENVIRONMENT, test_timeout_s=0.01))

    async def main():
        for _ in range(2):
            assert "time limit" in (await grader.grade(slow, FIX)).message
        grader.config = SandboxConfig(scratch=str(tmp_path / "file"))
        (tmp_path / "file").write_text("")
        for _ in range(2):
            with pytest.raises(SandboxError):
                await grader.grade(UNITTEST_TASK, FIX)

    asyncio.run(main())
    assert (grader.runs, grader.hits) == (4, 0) and not grader._running


# ---- parts and weights

def test_parts_are_named_and_weighed(config):
    task, grader = replace(UNITTEST_TASK, oracle_patch=FIX), Grader(config)

    async def main():
        for weights, always, ran, parts, total in (({"tests": 1.0, "patch": 0.5}, False, True, {"tests": 1.0, "patch": 1.0}, 1.5),
                                                   ({"patch": 2.0}, False, False, {"patch": 1.0}, 2.0), ({"patch": 2.0}, True, True, {"patch": 1.0}, 2.0)):
            verdict, got, sum_ = await compute(RewardConfig(weights=weights, always_test=always), task, FIX, grader)
            assert ((verdict is not None), got, sum_) == (ran, parts, total)

    asyncio.run(main())


def test_an_unknown_reward_names_the_nearest(tmp_path):
    with pytest.raises(ValidationError, match="did you mean 'tests'"):
        RewardConfig(weights={"test": 1.0})
    (tmp_path / "c.yaml").write_text("weights: {patches: 1}\n")
    with pytest.raises(ConfigError, match="did you mean 'patch'"):
        load(RewardConfig, tmp_path / "c.yaml")
    with pytest.raises(ValidationError, match="no reward"):
        RewardConfig(weights={})


# ---- patch similarity

BODY = "".join(f"def f{i}(a):\n    value = a * {i}\n    if value > {i}:\n        return value\n    return {i}\n\n\n" for i in range(4))
GOLD_BODY = BODY.replace("value > 2", "value >= 2").replace("a * 1", "a + 1").replace("    return 3\n", "    return -3\n")
GOLD = change("lib.py", BODY, GOLD_BODY)


def test_the_oracle_is_one_also_with_other_headers_and_order():
    two = GOLD + change("b.py", "x = 1\n", "x = 2\n")
    swapped = change("b.py", "x = 1\n", "x = 2\n") + GOLD
    assert patch_similarity(GOLD, GOLD) == patch_similarity(two, swapped) == 1.0
    assert patch_similarity(GOLD.split("\n", 1)[1], GOLD) == 1.0  # no `diff --git` line
    assert patch_similarity(GOLD, two) == 0.5 and patch_similarity(two, GOLD) == 0.5


@pytest.mark.parametrize("new", [
    BODY, BODY.replace("    if", "    # fix\n    if"), BODY.replace("a * 1", "a * 1  # fix"), BODY.replace("    return 3", "        return 3"), BODY.replace("\n\n\n", "\n\n\n\n"),
    BODY.replace("value = a", "value  =  a"), "# a\n# b\n" + BODY])
def test_comments_whitespace_and_nothing_score_zero(new):
    assert patch_similarity(change("lib.py", BODY, new) if new != BODY else "", GOLD) == 0.0


def test_comments_of_other_languages_score_zero():
    java = "class A {\n    int f() { return 1; }\n}\n"
    gold = change("A.java", java, java.replace("1", "2"))
    for new in (java.replace("{\n", "{\n    // return 2;\n"), java.replace("{\n", "{\n    /*\n     * return 2;\n     */\n", 1), java.replace("1; }", "1; } /* 2 */")):
        assert patch_similarity(change("A.java", java, new), gold) == 0.0
    assert patch_similarity(gold, gold) == 1.0


def test_deleting_is_worth_less_than_half_and_near_more_than_far():
    deleted = change("lib.py", BODY, BODY.replace("    if value > 2:\n", "").replace("    value = a * 1\n", "").replace("    return 3\n", ""))
    near = change("lib.py", BODY, GOLD_BODY.replace("-3", "-4"))
    place = change("lib.py", BODY, BODY.replace("value > 2", "value < 9"))
    far = change("lib.py", BODY, BODY.replace("def f0", "def other"))
    elsewhere = GOLD.replace("lib.py", "other.py")
    scores = [patch_similarity(diff, GOLD) for diff in (GOLD, near, place, far, elsewhere)]
    assert scores == sorted(scores, reverse=True) and scores[1] > 0.9 and scores[-1] == 0.0
    assert patch_similarity(deleted, GOLD) <= 0.7 * patch_similarity(near, GOLD)


def test_padding_lowers_the_score_and_a_flood_is_refused_fast():
    padded = change("lib.py", BODY, GOLD_BODY + "".join(f"value_{i} = {i}\n" for i in range(300)))
    flood = change("lib.py", BODY, GOLD_BODY + "x = (1, 2)\n" * 200_000)
    assert patch_similarity(padded, GOLD) < 0.2 and patch_similarity(flood, GOLD) == 0.0


def test_an_oracle_of_whitespace_is_compared_as_text():
    indented = change("lib.py", BODY, BODY.replace("        return value", "    return value"))
    assert patch_similarity(indented, indented) == 1.0 and patch_similarity("", indented) == 0.0


def test_a_comment_sign_in_a_string_is_code():
    gold = change("lib.py", "x = '#a'\n", "x = '#b'\n")
    assert patch_similarity(gold, gold) == 1.0 and patch_similarity(change("lib.py", "x = '#a'\n", "x = '#a' # b\n"), gold) == 0.0
