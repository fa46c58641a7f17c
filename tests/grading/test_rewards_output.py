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
    "Traceback (most recent call last):\n  F\nValueError: x\n\n"
    "During handling of the above exception, another exception occurred:\n\n",
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
