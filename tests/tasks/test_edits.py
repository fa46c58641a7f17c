"""What is seen of an agent's edits: with a real sandbox and judge, an agent that takes turns, a model whose words are
scripted."""

import asyncio

import pytest
from scaffold_helpers import LIMITS, episodes, tool_text

from coderepairrl.scaffolds import make_scaffold
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import HELD_OUT, Outcome

PUZZLE = next(puzzles("train", "edits"))
TASK, BUG = PUZZLE.task, PUZZLE.bug
RIGHT = tool_text("edit", path="lib.py", old=PUZZLE.broken, new=PUZZLE.program.source)
WRONG = tool_text("edit", path="lib.py", old=PUZZLE.broken, new=PUZZLE.broken.replace("return", "return 1 +", 1))
NOWHERE = tool_text("edit", path="lib.py", old="text that is not there", new="x")
SCRATCH = tool_text("shell", command="echo 'import lib' > reproduce.py")
NOTHING = tool_text("edit", path="lib.py", old=PUZZLE.broken, new=PUZZLE.broken)
BACK, LOOK, SUBMIT = (
    tool_text("shell", command="git checkout -q ."),
    tool_text("shell", command="cat lib.py"),
    tool_text("submit"),
)


def seen(texts, tmp_path, split=HELD_OUT, scaffold=TerminalConfig(), **limits):
    job = (TASK, texts, LIMITS.model_copy(update=limits))
    trajectory = asyncio.run(episodes(make_scaffold(scaffold), [job], tmp_path, split=split))[0]
    return trajectory, {name: trajectory.stats[name] for name in ("edits", "first_edit") if name in trajectory.stats}


@pytest.mark.parametrize(
    ("texts", "edits", "first", "resolved"),
    [
        ([LOOK, RIGHT, SUBMIT], 1, 1, True),
        ([LOOK, WRONG, SUBMIT], 1, 0, False),
        ([LOOK, SUBMIT], 0, 0, False),
        ([NOWHERE, SUBMIT], 0, 0, False),
        ([NOWHERE, RIGHT, SUBMIT], 1, 1, True),  # the first that applies
        ([NOTHING, RIGHT, SUBMIT], 1, 1, True),  # and changes something
        ([WRONG, BACK, RIGHT, SUBMIT], 2, 0, True),  # persistence
        ([RIGHT, BACK, WRONG, SUBMIT], 2, 1, False),
        ([RIGHT, BACK, SUBMIT], 1, 1, False),
        ([RIGHT, BACK, RIGHT, SUBMIT], 2, 1, True),
        ([WRONG + BACK, RIGHT, SUBMIT], 1, 1, True),  # what is taken back in the same turn left nothing
        ([LOOK + WRONG + SUBMIT], 1, 0, False),
        ([SCRATCH, RIGHT, SUBMIT], 1, 1, True),  # a script of its own is no repair that failed
        ([SCRATCH, WRONG, SCRATCH + SCRATCH, SUBMIT], 1, 0, False),
        ([SCRATCH, SUBMIT], 1, 0, False),  # but all that it has done
    ],
)
def test_the_first_edit_is_judged_alone_and_edits_are_counted(texts, edits, first, resolved, tmp_path):
    trajectory, found = seen(texts, tmp_path)
    assert found == {"edits": edits, "first_edit": first}, trajectory.events
    assert trajectory.verdict.resolved is resolved, trajectory.events
    assert trajectory.outcome == Outcome.SUBMITTED


def test_the_last_edit_before_a_limit_is_seen(tmp_path):
    trajectory, found = seen([LOOK, RIGHT], tmp_path, max_turns=2)
    assert trajectory.outcome == Outcome.TURN_LIMIT and found == {"edits": 1, "first_edit": 1}


@pytest.mark.parametrize(
    ("texts", "calls"),
    [
        ([LOOK, RIGHT, LOOK, SUBMIT], 2),
        ([LOOK, SUBMIT], 0),
        ([RIGHT, BACK, SUBMIT], 2),
        ([LOOK + RIGHT + SUBMIT], 1),
        ([SCRATCH, RIGHT, SCRATCH], 2),
    ],
)
def test_the_calls_that_led_to_what_is_judged_are_counted(texts, calls, tmp_path):
    trajectory, _ = seen(texts, tmp_path, max_turns=len(texts))
    assert trajectory.stats["calls_at_last"] == calls


def test_training_and_agents_that_are_programs_are_not_watched(tmp_path):
    assert seen([RIGHT, SUBMIT], tmp_path, split="train")[1] == {}
    program = CommandConfig(argv=["sh", "-c", "echo x >> lib.py"])
    trajectory, found = seen([], tmp_path / "program", scaffold=program)
    assert found == {} and "+x" in trajectory.diff
