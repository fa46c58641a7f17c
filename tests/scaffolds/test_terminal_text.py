"""The terminal agent's text mode: one fenced block a turn, every answer of the model gets a word back that says what to
do."""

import asyncio

import pytest
from scaffold_helpers import episodes

from coderepairrl.demonstrations.acts import Edit, Look, RunTests, Slip, Submit
from coderepairrl.demonstrations.dialects import speak
from coderepairrl.scaffolds import make_scaffold
from coderepairrl.scaffolds.terminal_text import USAGE, TerminalTextConfig, blocks
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Outcome

PUZZLE = next(puzzles("train", "terminal"))
FIRST = PUZZLE.broken.split("\n")[0]


@pytest.mark.parametrize(
    "answer, found",
    [
        ("", []),
        ("ls", []),
        ("`ls`", []),
        ("```\nls\n```", []),
        ("```python\nprint()\n```", []),
        ("```bash\nls\n```", [("bash", "ls\n")]),
        ("I look.\n```bash\nls\npwd\n```\nThen I see.", [("bash", "ls\npwd\n")]),
        ("```  bash \nls\n``` ", [("bash", "ls\n")]),
        ("```bash\r\nls\r\n```\r\n", [("bash", "ls\r\n")]),
        ("```bash\n```", [("bash", "")]),
        ("```bash\nls", [("bash", None)]),
        ("```bash\nls\n```\n```bash\npwd\n```", [("bash", "ls\n"), ("bash", "pwd\n")]),
        ("```python\n```bash\nls\n```", []),  # within another's
        (
            "````bash\ncat > a.md <<'EOF'\n```bash\nls\n```\nEOF\n````",
            [("bash", "cat > a.md <<'EOF'\n```bash\nls\n```\nEOF\n")],
        ),
        ("```edit lib.py\nx\n`````", [("edit", "x\n")]),
        ("say ```bash\nls\n```", []),
        ("```bash`\nls\n```", []),
    ],
)
def test_blocks(answer, found):
    assert blocks(answer) == found


def edit(old, new, path="lib.py"):
    return f"```edit\n{path}\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n```"


def test_a_whole_episode(tmp_path):
    """What the model reads, as it is answered; the edit is in the diff."""
    say = [
        "```bash\nhead -1 lib.py; exit 3\n```",
        "hm",
        "```bash\ntrue\n```",
        "```bash\nls\n```\n```bash\nls\n```",
        "```bash\nls",
        edit("nowhere", "x"),
        edit("a", "b", "../x"),
        "```edit\nlib.py\n```",
        "One line.\n" + edit(FIRST, FIRST + "  # x"),
        "```bash\nsubmit\n```",
    ]
    (found,) = asyncio.run(
        episodes(
            make_scaffold(TerminalTextConfig(system_prompt="Be brief.")),
            [(PUZZLE.task, say)],
            tmp_path,
            reward="random",
        )
    )
    assert found.outcome is Outcome.SUBMITTED and f"+{FIRST}  # x" in found.diff and len(found.calls) == len(say)
    assert [call.parent for call in found.calls] == [None, *range(len(say) - 1)]
    calls = [event for event in found.events if event["kind"] == "call"]
    assert calls[0]["new_messages"] == [{"role": "user", "content": f"Be brief.\n\n{PUZZLE.task.problem_statement}"}]
    told = [event["new_messages"][-1]["content"] for event in calls[1:]]
    assert told[:5] == [
        f"{FIRST}\n[exit code 3]",
        f"error: no block; {USAGE}",
        "[no output]",
        f"error: 2 blocks; {USAGE}",
        f"error: the block has no end; {USAGE}",
    ]
    assert all(
        word in text
        for word, text in zip(
            ("occurs 0 times in lib.py", "outside the repository", "no search/replace block", "ok"),
            told[5:],
            strict=True,
        )
    )


def test_answers_without_a_command_end_the_agent(tmp_path):
    (found,) = asyncio.run(
        episodes(make_scaffold(TerminalTextConfig()), [(PUZZLE.task, ["hm"] * 4)], tmp_path, reward="random")
    )
    assert (
        found.outcome is Outcome.AGENT_ERROR
        and "3 answers in a row without a usable command" in found.outcome_detail
        and len(found.calls) == 3
    )


def test_what_a_demonstrator_says_is_what_it_means():
    acts = [
        Look("lib.py"),
        Slip(Edit("lib.py", "a\nb\n", "a", "c")),
        Edit("lib.py", "a\nb\n", "a", "c"),
        Edit("new/x.md", None, "", "```bash\nls\n```\n"),
        RunTests("t"),
        Submit(),
    ]
    turns = speak(TerminalTextConfig(), acts)
    assert [turn.trained for turn in turns] == [True, False, True, True, True, True]
    said = [blocks(turn.message["content"]) for turn in turns]
    assert all(len(found) == 1 for found in said)
    assert [found[0] for found in said] == [
        ("bash", "cat lib.py\n"),
        ("edit", "lib.py\n<<<<<<< SEARCH\nc\n=======\nc\n>>>>>>> REPLACE\n"),
        ("edit", "lib.py\n<<<<<<< SEARCH\na\n=======\nc\n>>>>>>> REPLACE\n"),
        ("edit", "new/x.md\n<<<<<<< SEARCH\n=======\n```bash\nls\n```\n>>>>>>> REPLACE\n"),
        ("bash", "t\n"),
        ("bash", "submit\n"),
    ]
