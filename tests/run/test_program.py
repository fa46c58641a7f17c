"""What every program does at its edge: a mistake of the user is one line, a mistake of ours is shown whole."""

import subprocess
import sys

import pytest

PROGRAM = '''"""Does nothing, well.

    python does_nothing.py CONFIG
"""
import errno
import sys

from coderepairrl.errors import EngineError
from coderepairrl.run.program import program


@program
def main(arguments):
    match arguments[0]:
        case "engine":
            raise EngineError("vLLM ended: see its log")
        case "bug":
            raise ValueError("our own mistake")
        case "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl")
        case "denied":
            raise PermissionError(errno.EACCES, "Permission denied", "/run")
        case "exit":
            sys.exit(7)
    print("done", *arguments)


main(sys.argv[1:])
'''


@pytest.fixture
def start(tmp_path):
    (tmp_path / "does_nothing.py").write_text(PROGRAM)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "does_nothing.py"), *arguments], capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_what_goes_well_says_so(start):
    assert start("x.yaml", "a.b=c") == (0, "done x.yaml a.b=c\n", "")


def test_an_error_made_on_purpose_is_one_line_and_exit_code_1(start):
    assert start("engine") == (1, "", "error: vLLM ended: see its log\n")


def test_a_bug_shows_its_traceback(start):
    code, out, err = start("bug")
    assert (
        code == 1
        and out == ""
        and "Traceback" in err
        and err.rstrip().endswith("ValueError: our own mistake")
        and not err.startswith("error:")
    )


def test_a_full_disk_is_no_bug_and_other_errors_of_the_system_are_shown_whole(start):
    assert start("full") == (
        1,
        "",
        "error: no space left on the device (/run/metrics.jsonl): free some, then start the same command again\n",
    )
    code, _, err = start("denied")
    assert code == 1 and "Traceback" in err and "PermissionError" in err


def test_an_exit_code_is_passed_on(start):
    assert start("exit") == (7, "", "")


def test_help_is_the_programs_docstring(start):
    for word in ("-h", "--help"):
        code, out, err = start(word)
        assert (
            code == 0 and out.startswith("Does nothing, well.") and "python does_nothing.py CONFIG" in out and err == ""
        )


def test_without_a_configuration_usage_and_error_are_both_shown(start):
    code, out, err = start()
    assert (
        code == 1
        and out == ""
        and "python does_nothing.py CONFIG" in err
        and err.splitlines()[-1].startswith("error: nothing given")
    )
