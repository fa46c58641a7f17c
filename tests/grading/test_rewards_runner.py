"""What a test command meets: the project's own pytest settings, variables of a CI, argument lists of any length, a
machine's usual places."""

import asyncio
import json
import sys
from dataclasses import replace

import pytest
from judge_helpers import RIGHT, WRONG
from sandbox_helpers import ISOLATED, sandbox_config

from coderepairrl.grading.arguments import shortened
from coderepairrl.rewards import grade
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.tasks import jsonl
from coderepairrl.tasks.patches import unified_diff
from coderepairrl.types import VerdictKind

TESTS = "from lib import f, g\n\n\ndef test_f():\n    assert f(1) == 2\n\n\ndef test_g():\n    assert g(3) == 3\n"
IDS = ("test_lib.py::test_f", "test_lib.py::test_g")
ROW = {
    "task_id": "mine-1",
    "problem_statement": "f(1) is 2.",
    "environment": {},
    "files": {"lib.py": WRONG},
    "test_selection": ["test_lib.py"],
    "hidden_tests": {"test_lib.py": TESTS},
    "fail_to_pass": IDS[:1],
    "pass_to_pass": IDS[1:],
    "oracle_patch": unified_diff("lib.py", WRONG, RIGHT),
}


def task(tmp_path, **changes):
    return jsonl.from_row(json.loads(json.dumps(ROW | changes)), "row", tmp_path)


def verdicts(task, config):
    """(the repair's, the empty diff's)"""
    return [asyncio.run(grade(task, diff, config)) for diff in (task.oracle_patch, "")]


def misjudged(task, config):
    """Those of the two verdicts that are wrong: the repair resolves, the empty diff does not, on the same evidence."""
    good, none = verdicts(task, config)
    right = good.kind == VerdictKind.RESOLVED, none.kind == VerdictKind.UNRESOLVED and none.evidence == good.evidence
    return [verdict for verdict, is_right in zip((good, none), right, strict=True) if not is_right]


@pytest.mark.parametrize(
    "settings",
    [
        "addopts = --ff",
        "addopts = --lf",
        "addopts = --nf",
        "addopts = --cache-clear",
        "addopts = --strict-config\ncache_dir = .cache/pytest",
        "addopts = -p no:cacheprovider",
        "addopts = -p no:cacheprovider --strict-config",
        "addopts = --junit-prefix=ci",
        "addopts = --junitprefix ci -v",
        "addopts = --junitxml=mine.xml",
        "addopts = -o cache_dir=mine",
        "junit_family = xunit2",
    ],
)
def test_a_projects_own_settings_of_cache_and_report(tmp_path, config, settings):
    assert not misjudged(task(tmp_path, files=ROW["files"] | {"pytest.ini": f"[pytest]\n{settings}\n"}), config)


def test_the_cache_is_at_work_and_forgets(tmp_path, config):
    """Each run finds it empty, also one that follows a run that wrote."""
    tests = (
        "from lib import f\n\n\ndef test_f(pytestconfig):\n"
        "    assert pytestconfig.cache.get('a/b', None) is None\n    pytestconfig.cache.set('a/b', 1)\n"
        "    assert pytestconfig.cache.get('a/b', None) == 1 and f(1) == 2\n\n\ndef test_g(request):\n"
        "    assert not request.config.cache.get('cache/lastfailed', {})\n"
    )
    assert not misjudged(task(tmp_path, hidden_tests={"test_lib.py": tests}), config)


SURROUNDINGS = {
    "no_color": "'NO_COLOR' not in os.environ",
    "term": "'TERM' not in os.environ",
    "utf8": "os.environ['LANG'] == 'C.UTF-8'",
    "services": "not os.path.exists('/etc/services') and SKIP or socket.getservbyname('http') == 80",
    "protocols": "not os.path.exists('/etc/protocols') and SKIP or socket.getprotobyname('icmp') == 1",
    "var_tmp": "os.path.isfile(tempfile.mkstemp(dir='/var/tmp')[1])",
    "var_tmp_open": "os.stat('/var/tmp').st_mode & 0o7777 == 0o1777",
}


def test_what_tests_find_around_them(tmp_path, config):
    tests = "import os, socket, tempfile\nfrom lib import f\nSKIP = True\n" + "".join(
        f"def test_{name}():\n    assert ({code}) and f(1) == 2\n\n" for name, code in SURROUNDINGS.items()
    )
    ids = [f"test_lib.py::test_{name}" for name in SURROUNDINGS]
    assert not misjudged(
        task(tmp_path, hidden_tests={"test_lib.py": tests + "def test_g():\n    pass\n"}, fail_to_pass=ids), config
    )


def test_the_environments_own_variables_stay(tmp_path, config):
    tests = (
        "import os\nfrom lib import f\n\ndef test_f():\n"
        "    assert os.environ['NO_COLOR'] == '0' and os.environ['TERM'] == 'xterm' and f(1) == 2\n\ndef test_g():\n"
        "    pass\n"
    )
    assert not misjudged(
        task(
            tmp_path, hidden_tests={"test_lib.py": tests}, environment={"variables": {"NO_COLOR": "0", "TERM": "xterm"}}
        ),
        config,
    )


def test_agents_are_still_told_to_be_brief(tmp_path, config):
    async def main():
        async with start_sandbox(config, task(tmp_path)) as sandbox:
            return await sandbox.run(
                "echo $TERM $NO_COLOR; env | grep -c UNSET", variables={"PAGER": None}
            ), await sandbox.run(["printenv", "PAGER"], variables={"PAGER": None})

    shell, pager = asyncio.run(main())
    assert shell.output.startswith("dumb 1\n") and pager.exit_code == 1


# ---- long commands --------------------------------------------------------------------------------------------------


def many(count):
    return (
        f"import pytest\nfrom lib import f, g\n\n\n@pytest.mark.parametrize('a', range({count}))\ndef test_f(a):\n"
        "    assert f(1) == 2\n\n\ndef test_g():\n    assert g(3) == 3\n"
    )


def test_a_selection_that_is_longer_than_a_command(tmp_path, config):
    name = f"test_{'x' * 100}.py"
    ids = [f"{name}::test_f[{i}]" for i in range(1000)]
    assert not misjudged(
        task(
            tmp_path,
            hidden_tests={name: many(1000)},
            test_selection=[*ids, f"{name}::test_g"],
            fail_to_pass=ids,
            pass_to_pass=[f"{name}::test_g"],
            environment={"test_timeout_s": 120},
        ),
        config,
    )


PRINT = "import sys\nprint(len(sys.argv), sys.argv[0].endswith('show.py'), sys.path[0], sys.argv[-1], __name__)\n"
LONG = ["a b", "'", "é", "", "\n", "$HOME", *["word"] * 30_000, "last"]
COMMANDS = {
    "module": [sys.executable, "-m", "show", *LONG],
    "options": [sys.executable, "-W", "ignore", "-m", "show", *LONG],
    "huge": [
        sys.executable,
        "-m",
        "show",
        *(word * 20 for word in LONG[:-1]),
        "last",
    ],  # more than the kernel hands to a program
    "script": [sys.executable, "show.py", *LONG],
    "shell": ["bash", "-c", f"echo {'word ' * 30_000} last | wc -w"],
    "other": ["/usr/bin/printf", "%s.", *LONG],
}


@pytest.mark.parametrize("kind", ISOLATED)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_long_command_does_what_it_does_when_it_is_short(tmp_path, kind, command):
    argv = COMMANDS[command]
    one = task(tmp_path, files={"show.py": PRINT, "lib.py": ""})

    async def main():
        async with start_sandbox(sandbox_config(kind, tmp_path), one) as sandbox:
            short = shortened(argv, sandbox)
            assert short != argv and shortened(argv[:2], sandbox) == argv[:2]
            return await sandbox.run(argv), await sandbox.run(short, timeout_s=60)

    refused, result = asyncio.run(main())
    assert refused.exit_code == 126 and result.exit_code == 0, result
    wanted = {"shell": "30001\n", "other": "".join(f"{word}." for word in LONG)}.get(command)
    path = "/repo"
    assert (
        result.output == (wanted or f"{len(LONG) + 1} True {path} last __main__\n")
        or wanted
        and result.output.startswith(wanted[:100])
    )


def test_a_log_of_a_long_command(tmp_path, config):
    """A row's own script, with a name for each test."""
    script = (
        "for t in "
        + "test_lib.py::test_f test_lib.py::test_g " * 5000
        + f"; do :; done; {sys.executable} -m pytest -rA test_lib.py"
    )
    assert not misjudged(
        replace(
            task(tmp_path),
            environment=replace(
                task(tmp_path).environment, log_parser="parse_log_pytest", test_command=("bash", "-c", script)
            ),
        ),
        config,
    )
