"""What a test command printed: its first error, its tail, and all of it; where each goes, and where it must not go."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_helpers import tokenizer
from hypothesis import given
from hypothesis import strategies as st
from judge_helpers import FIX, LOG_TASK, PYTEST_TASK, UNITTEST_TASK, source
from scaffold_helpers import LIMITS, episodes, tool_text

from coderepairrl.grading.junit import ReportError, read_ends
from coderepairrl.grading.output import ERROR_CHARACTERS, TAIL_CHARACTERS, Outputs, first_error, plain, tail
from coderepairrl.rewards import Grader
from coderepairrl.rollout import trajectory_files
from coderepairrl.sandboxes import CommandResult, SandboxError
from coderepairrl.scaffolds import make_scaffold
from coderepairrl.scaffolds.controls import GoldConfig
from coderepairrl.scaffolds.retry import RetryConfig
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Outcome, VerdictKind

RULE = "=" * 30
PYTEST = f"{RULE} test session starts {RULE}\nplatform linux -- Python 3.11.7, pytest-8.4.2, pluggy-1.6.0\nrootdir: /repo\nconfigfile: pytest.ini\n"
COLLECTING = (
    PYTEST
    + f"""collected 0 items / 1 error

{RULE} ERRORS {RULE}
___________ ERROR collecting tests/test_hidden.py ___________
ImportError while importing test module '/repo/tests/test_hidden.py'.
Hint: make sure your test modules/packages have valid Python names.
Traceback:
/usr/lib/python3.11/importlib/__init__.py:126: in import_module
    return _bootstrap._gcd_import(name[level:], package, level)
tests/test_hidden.py:3: in <module>
    from lib import f, g
E   ModuleNotFoundError: No module named 'gone'
{RULE} short test summary info {RULE}
ERROR tests/test_hidden.py
!!!!!!!!!!!!!! Interrupted: 1 error during collection !!!!!!!!!!!!!!
{RULE} 1 error in 0.11s {RULE}
"""
)
LOADER = 'Traceback (most recent call last):\n  File "/usr/lib/python3.11/unittest/loader.py", line 162, in loadTestsFromName\n    module = __import__(module_name)\n'
FIRSTS = {  # name -> (output, exit code, the first error)
    # pytest
    "a file that is absent": (
        PYTEST
        + f"collected 0 items\n\n{RULE} no tests ran in 0.10s {RULE}\nERROR: file or directory not found: tests/test_gone.py\n\n",
        4,
        "ERROR: file or directory not found: tests/test_gone.py",
    ),
    "the same, quietly": (
        "\nno tests ran in 0.1s\nERROR: file or directory not found: tests/test_gone.py\n",
        4,
        "ERROR: file or directory not found: tests/test_gone.py",
    ),
    "a test that is absent": (
        "ERROR: not found: /repo/tests/test_a.py::test_gone\n(no match in any of [<Module test_a.py>])\n\nno tests ran in 0.0s\n",
        4,
        "ERROR: not found: /repo/tests/test_a.py::test_gone",
    ),
    "usage": (
        "ERROR: usage: __main__.py [options] [file_or_dir] [...]\n__main__.py: error: unrecognized arguments: --ff\n  inifile: /repo/pytest.ini\n  rootdir: /repo\n\n",
        4,
        "__main__.py: error: unrecognized arguments: --ff",
    ),
    "usage of before": (
        "usage: pytest [options] [file_or_dir]\npytest: error: unrecognized arguments: --cov=lib\n  inifile: /repo/setup.cfg\n  rootdir: /repo\n",
        4,
        "pytest: error: unrecognized arguments: --cov=lib",
    ),
    "settings": (
        PYTEST + "ERROR: /repo/pytest.ini:2: unexpected line: 'x'\n\n",
        4,
        "ERROR: /repo/pytest.ini:2: unexpected line: 'x'",
    ),
    "a module that is absent": (COLLECTING, 2, "ModuleNotFoundError: No module named 'gone'"),
    "the same in colours": (
        COLLECTING.replace("E   ", "\x1b[1m\x1b[31mE   ").replace("'gone'", "'gone'\x1b[0m"),
        2,
        "ModuleNotFoundError: No module named 'gone'",
    ),
    "syntax": (
        COLLECTING.replace(
            "E   ModuleNotFoundError: No module named 'gone'",
            'E     File "/repo/lib.py", line 1\nE       def f(:\nE             ^\nE   SyntaxError: invalid syntax',
        ),
        2,
        "SyntaxError: invalid syntax",
    ),
    "an exception of its own": (
        COLLECTING.replace("E   ModuleNotFoundError: No module named 'gone'", "E   lib.Missing: no settings"),
        2,
        "lib.Missing: no settings",
    ),
    "a conftest": (
        "ImportError while loading conftest '/repo/conftest.py'.\nconftest.py:1: in <module>\n    import gone\nE   ModuleNotFoundError: No module named 'gone'\n",
        4,
        "ModuleNotFoundError: No module named 'gone'",
    ),
    "a fixture": (
        "file /repo/test_a.py, line 1\n  def test_a(gone):\nE       fixture 'gone' not found\n>       available fixtures: cache\n",
        1,
        "fixture 'gone' not found",
    ),
    "a summary alone": (
        "ERROR tests/test_a.py - ModuleNotFoundError: No module named 'gone'\n1 error in 0.1s\n",
        2,
        "ERROR tests/test_a.py - ModuleNotFoundError: No module named 'gone'",
    ),
    "its own bug": (
        "INTERNALERROR> Traceback (most recent call last):\nINTERNALERROR>   File \"/venv/main.py\", line 5, in x\nINTERNALERROR>     y()\nINTERNALERROR> KeyError: 'x'\n\n",
        3,
        "KeyError: 'x'",
    ),
    "nothing was collected": (
        PYTEST + f"collected 0 items\n\n{RULE} no tests ran in 0.01s {RULE}\n",
        5,
        f"{RULE} no tests ran in 0.01s {RULE}",
    ),
    "no pytest": ("/usr/bin/python3: No module named pytest\n", 1, "/usr/bin/python3: No module named pytest"),
    "a warning before": (
        "/venv/x.py:3: DeprecationWarning: error: old\n  import imp\nWARNING: error: no cache\npytest: error: unrecognized arguments: -z\n",
        4,
        "pytest: error: unrecognized arguments: -z",
    ),
    # other runners and wrappers
    "unittest": (
        "E\n"
        + RULE
        + "\nERROR: test_gone (unittest.loader._FailedTest.test_gone)\n"
        + "-" * 30
        + "\nImportError: Failed to import test module: test_gone\n"
        + LOADER
        + "ModuleNotFoundError: No module named 'gone'\n\n\n"
        + "-" * 30
        + "\nRan 1 test in 0.000s\n\nFAILED (errors=1)\n",
        1,
        "ModuleNotFoundError: No module named 'gone'",
    ),
    "two of unittest": (
        LOADER
        + "ModuleNotFoundError: No module named 'one'\n\n"
        + LOADER
        + "ModuleNotFoundError: No module named 'two'\n",
        1,
        "ModuleNotFoundError: No module named 'one'",
    ),
    "a script": (
        "python3: can't open file '/repo/runtests.py': [Errno 2] No such file or directory\n",
        2,
        "python3: can't open file '/repo/runtests.py': [Errno 2] No such file or directory",
    ),
    "Django": (
        LOADER + "django.core.exceptions.ImproperlyConfigured: Requested setting X, but settings are not configured.\n",
        1,
        "django.core.exceptions.ImproperlyConfigured: Requested setting X, but settings are not configured.",
    ),
    "tox": (
        "py311: commands[0]> pytest tests/x\nERROR: file or directory not found: tests/x\n\npy311: exit 4 (0.53 seconds) /repo> pytest tests/x pid=123\n"
        "  py311: FAIL code 4 (0.60=setup[0.05]+cmd[0.53] seconds)\n  evaluation failed :( (0.65 seconds)\n",
        4,
        "ERROR: file or directory not found: tests/x",
    ),
    "tox of before": (
        "E   ImportError: cannot import name 'f'\nERROR: InvocationError for command /repo/.tox/py36/bin/pytest (exited with code 2)\n",
        1,
        "ImportError: cannot import name 'f'",
    ),
    "tox without Python": (
        "ERROR: py36: InterpreterNotFound: python3.6\n",
        1,
        "ERROR: py36: InterpreterNotFound: python3.6",
    ),
    "bash": (
        "setting up\nbash: line 1: pytset: command not found\nnothing more\n",
        127,
        "bash: line 1: pytset: command not found",
    ),
    "dash": (
        "/bin/sh: 1: pytest: not found\nmake: *** [Makefile:2: test] Error 127\n",
        2,
        "/bin/sh: 1: pytest: not found",
    ),
    "env": (
        "/usr/bin/env: 'python3.6': No such file or directory\n",
        127,
        "/usr/bin/env: 'python3.6': No such file or directory",
    ),
    "make": ("make: *** No rule to make target 'test'.  Stop.\n", 2, "make: *** No rule to make target 'test'. Stop."),
    "Maven": (
        "[INFO] Scanning for projects...\n[WARNING] no encoding\n[INFO] -----\n[ERROR] COMPILATION ERROR : \n[INFO] -----\n"
        "[ERROR] /repo/src/A.java:[3,5] cannot find symbol\n[ERROR]   symbol:   class B\n[INFO] BUILD FAILURE\n"
        "[ERROR] Failed to execute goal org.apache.maven.plugins:maven-compiler-plugin:3.1:compile (default-compile) on project x\n[ERROR] -> [Help 1]\n",
        1,
        "/repo/src/A.java:[3,5] cannot find symbol",
    ),
    "javac": (
        "A.java:3: error: cannot find symbol\n    B b;\n    ^\n1 error\n",
        1,
        "A.java:3: error: cannot find symbol",
    ),
    "go": (
        "# example.com/m\n./a.go:3:2: undefined: x\nFAIL\texample.com/m [build failed]\nFAIL\n",
        1,
        "./a.go:3:2: undefined: x",
    ),
    "go without a module": (
        "go: downloading x v1.0.0\ngo: cannot find main module, but found .git/config in /repo\n",
        1,
        "go: cannot find main module, but found .git/config in /repo",
    ),
    "go panics": (
        "=== RUN   TestA\n--- FAIL: TestA (0.00s)\npanic: runtime error: index out of range [1] with length 0 [recovered]\n",
        2,
        "panic: runtime error: index out of range [1] with length 0 [recovered]",
    ),
    "npm": (
        'npm ERR! Missing script: "test"\nnpm ERR! \nnpm ERR! To see a list of scripts, run:\nnpm ERR!   npm run\n\nnpm ERR! A complete log of this run can be found in: /x\n',
        1,
        'Missing script: "test"',
    ),
    "npm of today": (
        "npm error code ENOENT\nnpm error syscall open\nnpm error path /repo/package.json\nnpm error errno -2\n"
        "npm error enoent Could not read package.json: Error: ENOENT: no such file or directory\n",
        254,
        "enoent Could not read package.json: Error: ENOENT: no such file or directory",
    ),
    "npm's runner": (
        "> x@1.0.0 test\n> jest\n\nsh: 1: jest: not found\nnpm ERR! code ELIFECYCLE\nnpm ERR! errno 127\n",
        127,
        "sh: 1: jest: not found",
    ),
    "node": (
        "node:internal/modules/cjs/loader:1080\n  throw err;\n  ^\n\nError: Cannot find module 'jest'\nRequire stack:\n",
        1,
        "Error: Cannot find module 'jest'",
    ),
    "cargo": (
        "   Compiling x v0.1.0 (/repo)\nerror[E0425]: cannot find value `x` in this scope\n --> src/lib.rs:2:5\nerror: could not compile `x`\n",
        101,
        "error[E0425]: cannot find value `x` in this scope",
    ),
    "gcc": (
        "a.c: In function 'f':\na.c:3:5: error: 'x' undeclared\na.c:4:5: error: 'y' undeclared\n",
        1,
        "a.c:3:5: error: 'x' undeclared",
    ),
    "Ruby": (
        "bundler: command not found: rspec\nInstall missing gem executables with `bundle install`\n",
        127,
        "bundler: command not found: rspec",
    ),
    "PHP": (
        "PHP Fatal error:  Uncaught Error: Call to undefined function f() in /repo/a.php:2\n",
        255,
        "PHP Fatal error: Uncaught Error: Call to undefined function f() in /repo/a.php:2",
    ),
    # ends without a word, or with another's
    "a crash that says so": (
        "tests/test_a.py Fatal Python error: Segmentation fault\n\nCurrent thread 0x0 (most recent call first):\n",
        139,
        "ended by SIGSEGV",
    ),
    "a crash at the beginning of a line": (
        "..\nFatal Python error: Segmentation fault\n\nCurrent thread\n",
        139,
        "Fatal Python error: Segmentation fault",
    ),
    "a crash, by the shell": (
        "bash: line 1:    12 Segmentation fault      (core dumped) python -m pytest\n",
        139,
        "ended by SIGSEGV",
    ),
    "a crash without a word": ("", 139, "ended by SIGSEGV"),
    "memory": (
        "collected 3 items\n\ntests/test_a.py .\n[killed: memory limit of 2048 MiB]\n",
        137,
        "memory limit of 2048 MiB",
    ),
    "memory, by the kernel": (
        "collected 3 items\n",
        137,
        "ended by SIGKILL, from outside: where nobody sent it, the kernel did, for want of memory",
    ),
    "a time limit": ("E   ValueError: x\n[killed: time limit of 60 s]\n", 124, "time limit of 60 s"),
    "a progress bar": (
        "  0%|  |\r 50%|# |\r100%|##|\r\nbash: line 1: x: command not found\r\n",
        127,
        "bash: line 1: x: command not found",
    ),
    "nothing": ("", 1, "no output"),
    "blanks": ("\n \r\n\x1b[0m\n", 1, "no output"),
    "a word": ("bye\n", 1, "bye"),
}


@pytest.mark.parametrize("name", FIRSTS)
def test_the_first_error_is_quoted(name):
    output, exit_code, expected = FIRSTS[name]
    assert first_error(output, exit_code) == expected


TAILS = {  # output -> what is shown
    "one\ntwo\n": "one\ntwo",
    "\n\n  x\n\n": "  x",
    "": "",
    "a\r\nb\r\n": "a\nb",
    " 1%\r 99%\rdone\nnext": "done\nnext",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07 x": "red x",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",
    "a\u2028b\x85c\x0cd": "a b c d",
    "\ud800x\udcff": "\ufffdx\ufffd",
    "\0a\x07\tb\x08": "a    b",
    "\x1b": "",
    "日本\n": "日本",
}


@pytest.mark.parametrize("output", TAILS)
def test_a_tail_is_what_a_terminal_shows(output):
    assert tail(output) == TAILS[output]


def test_a_tail_is_cut_at_a_line_or_inside_of_one_that_is_long():
    text = "".join(f"line {number}\n" for number in range(1000))
    mark, *lines = tail(text, 100).split("\n")
    assert lines[0].startswith("line ") and lines[-1] == "line 999" and sum(map(len, lines)) + len(lines) <= 101
    assert mark == f"[... {len(text) - 1 - len(chr(10).join(lines))} characters cut ...]"
    assert tail("x" * 1000 + "\nend", 100) == "[... 904 characters cut ...]\n" + "x" * 96 + "\nend"
    assert (
        tail("x" * 100, 100) == "x" * 100
        and tail("x" * 50 + "\n" + "y" * 100, 100) == "[... 51 characters cut ...]\n" + "y" * 100
    )


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(codec=None)),
            st.binary().map(lambda data: data.decode(errors="surrogateescape")),
            st.sampled_from(
                [
                    "\x1b[1;3",
                    "\x1b]",
                    "\r",
                    "\r\n",
                    "E   ",
                    "Traceback (most recent call last):\n",
                    "[killed: ",
                    "INTERNALERROR> ",
                    "[ERROR] ",
                ]
            ),
        ),
        max_size=20,
    )
)
def test_any_output_is_text_that_json_files_and_terminals_hold(parts):
    text = "".join(parts)
    shown, first = tail(text), first_error(text)
    assert (
        json.loads(json.dumps(shown).encode()) == shown
        and shown.encode().decode() == shown
        and len(shown.splitlines()) <= shown.count("\n") + 1
    )
    assert (
        "\x1b" not in shown + first
        and 0 < len(first) <= ERROR_CHARACTERS
        and "\n" not in first
        and plain(shown) == shown
    )


TRACEBACKS = (
    " Traceback (most recent call last):\n",
    "  Traceback (most recent call last):\n  x\n",
    "Exception Group Traceback (most recent call last):\n  x\n",
    "    Traceback (most recent call last):\n      File\n    ValueError: x\n",
    "  + Exception Group Traceback (most recent call last):\n  | x\n",
    "Traceback (most recent call last):\n  F\nValueError: x\n\nDuring handling of the above exception, another exception occurred:\n\n",
)


@pytest.mark.parametrize(
    "piece",
    [
        "a" * 1000,
        "x\r",
        "\x1b[31m",
        "\x1b]",
        "E   ",
        "\n",
        "a: ",
        "a.go:",
        "ERROR: a ",
        "[killed: ",
        "error ",
        "\u2028",
        *TRACEBACKS,
    ],
)
def test_a_large_output_takes_no_more_than_linear_time(piece):
    text = piece * ((1 << 20) // len(piece))  # with time that grows as its square this would take hours
    assert len(tail(text)) <= TAIL_CHARACTERS + 60 and len(first_error(text)) <= ERROR_CHARACTERS


def test_of_a_large_output_the_ends_are_searched():
    noise = "x = 1\n" * (8 << 20)
    assert first_error(f"fatal: a\n{noise}") == first_error(f"{noise}fatal: a\n") == "fatal: a"


@pytest.mark.parametrize("why", ["a file", "closed"])
def test_what_cannot_be_kept_is_the_machines_fault(config, tmp_path, why):
    (tmp_path / "o").write_text("")
    with pytest.raises(SandboxError, match="keep none"):
        asyncio.run(
            Grader(
                config, outputs=Outputs(Path("/proc/none") if why == "closed" else tmp_path / "o/deeper", 1 << 20)
            ).grade(PYTEST_TASK, FIX)
        )


# ---- where it goes


def selecting(task, *words):
    return replace(task, task_id=f"{task.task_id}-selecting", test_selection=words)


@pytest.mark.parametrize("task", [PYTEST_TASK, LOG_TASK], ids=["junit", "log"])
def test_a_verdict_quotes_the_first_error_and_holds_the_tail(config, task):
    async def main():
        grader = Grader(config)
        return [
            await grader.grade(one, diff)
            for one, diff in ((selecting(task, "tests/test_gone.py"), FIX), (task, ""), (task, FIX), (task, "no diff"))
        ]

    absent, failing, resolved, nothing = asyncio.run(main())
    line = "ERROR: file or directory not found: tests/test_gone.py"
    assert absent.kind == VerdictKind.ENVIRONMENT_ERROR and absent.message.count(f"exit code 4: {line}") == 2, (
        absent.message
    )
    assert line in absent.output.split("\n") and "rootdir" not in absent.message
    assert failing.kind == VerdictKind.UNRESOLVED and "AssertionError" in failing.output or "assert" in failing.output
    assert (resolved.kind, resolved.output, nothing.kind, nothing.output) == (
        VerdictKind.RESOLVED,
        "",
        VerdictKind.DOES_NOT_APPLY,
        "",
    )
    assert not any(verdict.output_file for verdict in (absent, failing, resolved, nothing))


FLOOD = "import os; os.write(1, b'the first\\n' + b'\\xff\\x00\\x1b[31m x\\r' * (1 << 20) + b'\\nthe last\\n')"


@pytest.mark.parametrize("task", [PYTEST_TASK, LOG_TASK], ids=["junit", "log"])
@pytest.mark.parametrize("end", ["os._exit(3)", "import time; time.sleep(100)"], ids=["it ends", "it hangs"])
def test_all_of_an_output_is_kept_on_request(config, tmp_path, task, end):
    command = ("{python}", "-c", f"{FLOOD}; {end}", "{canary_path}")
    task = replace(
        task, task_id="owner/name-1", environment=replace(task.environment, test_timeout_s=15, test_command=command)
    )
    outputs = Outputs(tmp_path / "outputs", 1 << 20)
    verdict = asyncio.run(Grader(config, outputs=outputs).grade(task, FIX))
    assert (
        verdict.kind == VerdictKind.ENVIRONMENT_ERROR
        and "the last" in verdict.output.split("\n")
        and "\x1b" not in verdict.output
    )
    path = Path(verdict.output_file)
    head, text = path.read_text().split("\n", 1)
    assert head.startswith("[exit code 3 after" if "exit" in end else "[exit code 124 after") and "os.write" in head
    assert (
        "the first\n" in text[:2000]
        and "the last\n" in text[-2000:]
        and "bytes cut" in text
        and (1 << 20) <= len(text.encode()) <= (3 << 20) + 4000
    )
    assert path.parent.parent == outputs.folder and path.parent.name.startswith("owner_name-1.")
    names = {found.name for found in path.parent.iterdir()}
    assert {path.name, "oracle.log"} <= names and not [name for name in names if name.endswith(".tmp")]


def test_what_is_kept_changes_no_verdict(config, tmp_path):
    async def main(outputs):
        grader = Grader(config, outputs=outputs)
        return [
            await grader.grade(task, diff)
            for task in (PYTEST_TASK, LOG_TASK, UNITTEST_TASK)
            for diff in (FIX, "", source("import os\n"))
        ]

    plain_ones, kept = asyncio.run(main(None)), asyncio.run(main(Outputs(tmp_path / "outputs", 1 << 20)))
    assert [(verdict.kind, verdict.evidence, verdict.fail_to_pass) for verdict in plain_ones] == [
        (verdict.kind, verdict.evidence, verdict.fail_to_pass) for verdict in kept
    ]
    assert (
        all(Path(verdict.output_file).read_text() for verdict in kept)
        and len({verdict.output_file for verdict in kept}) == 9
    )


def test_ids_that_a_folder_cannot_have_are_told_apart(tmp_path):
    outputs, result = Outputs(tmp_path / "o", 1), CommandResult(0, "", False, 0.0)
    paths = [
        outputs.write(task, "oracle", ["a b", "x" * 5000], result, "\ud800")
        for task in ("a/b", "a_b", "a\\b", "..", "../a", "é" * 300, "", "a/b")
    ]
    assert (
        len(set(paths)) == 7 and all(path.parent.parent == tmp_path / "o" for path in paths) and paths[0] == paths[-1]
    )
    assert paths[0].read_text().startswith("[exit code 0 after 0.0 s: 'a b' xxx") and len(paths[0].read_text()) < 1100


def test_ends_of_a_file_and_of_what_is_none(tmp_path):
    (tmp_path / "log").write_bytes(b"abcdefghij")
    assert [read_ends(tmp_path / "log", most) for most in (10, 4)] == [b"abcdefghij", b"ab\n[... 6 bytes cut ...]\nij"]
    (tmp_path / "link").symlink_to(tmp_path / "log")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "gone"):
        with pytest.raises(ReportError, match="not a regular file"):
            read_ends(tmp_path / name, 10)


SECRET = "a-word-of-the-hidden-tests"


def test_no_prompt_holds_what_hidden_tests_print(config, tmp_path):
    """Also where the judge is asked in the middle of an episode; and where it stands is in the trajectory, in the file
    of trajectories and in the results."""
    puzzle = next(puzzles("train", "output"))
    task = replace(
        puzzle.task,
        metadata={},
        hidden_tests={path: f"print({SECRET!r})\n{text}" for path, text in puzzle.task.hidden_tests.items()},
    )
    gone = replace(selecting(task, "no_such_module"), hidden_tests={})
    grader = Grader(config)
    scaffold = make_scaffold(RetryConfig(), grader)
    jobs = [(one, [tool_text("submit")] * 3, LIMITS.model_copy(update={"max_turns": 2})) for one in (task, gone)]
    failed, absent = asyncio.run(episodes(scaffold, jobs, tmp_path))
    assert SECRET in failed.verdict.output and failed.test_output == (failed.verdict.output, "")
    assert "No module named 'no_such_module'" in absent.verdict.output
    for trajectory in (failed, absent):
        trajectory_files.write(tmp_path / "a.parquet", [trajectory], {})
        assert trajectory_files.read(tmp_path / "a.parquet")[0] == [trajectory]
        said = [event for event in trajectory.events if event["kind"] == "call"]
        assert (
            said
            and SECRET not in json.dumps(said)
            and not any(SECRET in tokenizer().decode(call.prompt_ids) for call in trajectory.calls)
        )


def test_what_a_broken_environment_printed_is_an_event(config, tmp_path):
    task = selecting(PYTEST_TASK, "tests/test_gone.py")
    [trajectory] = asyncio.run(episodes(make_scaffold(GoldConfig()), [(task, [])], tmp_path))
    assert (trajectory.verdict, trajectory.outcome) == (
        None,
        Outcome.INFRASTRUCTURE_ERROR,
    ) and "file or directory not found" in trajectory.test_output[0]
