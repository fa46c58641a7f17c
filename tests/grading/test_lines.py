"""Lines end where git and Python end them: at form feeds, U+0085, U+2028 and their kin a line goes on, in every place
that counts lines."""

import ast
import asyncio
import random
import re

import pytest
from judge_helpers import PYTEST_TASK, change

from coderepairrl.curation.statement import changed_lines, lines_until
from coderepairrl.demonstrations.acts import Edit, lines_of
from coderepairrl.diffs import split_diff
from coderepairrl.grading.expectations import turns
from coderepairrl.grading.turns import turned
from coderepairrl.grading.unusual import _read
from coderepairrl.grading.validation.weaker import weaker
from coderepairrl.lines import python_lines, split_lines
from coderepairrl.rewards import REWARDS
from coderepairrl.rewards.similarity import diff_ratio
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.scaffolds.single_pass import apply_blocks, parse_blocks
from coderepairrl.scaffolds.terminal_text import blocks
from coderepairrl.tasks.functions import _patch
from coderepairrl.tasks.patches import patched_files, unified_diff

ENDS_NOTHING = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
kinds = pytest.mark.parametrize("mark", ENDS_NOTHING, ids=ascii)


def source(mark: str, value: int = 1) -> str:
    """A mark in a string, in a comment, and as GNU has it, on a line of its own between functions."""
    alone = mark if mark == "\x0c" else f"# {mark}"
    return (
        f"TEXT = 'a{mark}b'  # c{mark}d\n{alone}\ndef f():\n    return {value}\n{alone}\n\ndef test_f():\n"
        f"    assert f() == {value}, 'x{mark}y'\n"
    )


@kinds
def test_the_two_meanings_of_a_line(mark):
    text = f"a{mark}b\r\nc\rd\n{mark}"
    assert split_lines(text) == [f"a{mark}b\r\n", "c\rd\n", mark] and python_lines(text) == [
        f"a{mark}b\r\n",
        "c\r",
        "d\n",
        mark,
    ]
    assert "".join(split_lines(text)) == text == "".join(python_lines(text)) and split_lines("") == []


@kinds
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_python_counts_as_its_parser_does(mark, end):
    text = source(mark).replace("\n", end)
    tree = ast.parse(text)
    assert python_lines(text)[tree.body[1].lineno - 1].startswith("def f")


@kinds
def test_an_edit_in_whole_lines_and_the_diffs_of_it(mark):
    before, after = source(mark), source(mark, 2)
    edit = Edit("lib.py", before, "return 1", "return 2")
    assert lines_of(edit) == ("    return 1\n", "    return 2\n")
    for diff in (unified_diff("lib.py", before, after), _patch(before, after)):
        assert patched_files("t", "patch", None, {"lib.py": before}, diff) == {"lib.py": after}
        [section] = split_diff(diff)
        assert [len(section.removed), len(section.added)] == [2, 2]


@kinds
def test_an_answer_of_blocks_is_applied_as_it_is_written(config, mark):
    new = source(mark, 2)
    answer = f"lib.py\n<<<<<<< SEARCH\nTEXT = 1  # c{mark}d\n=======\n{new}>>>>>>> REPLACE\n"
    assert parse_blocks(answer) == [("lib.py", f"TEXT = 1  # c{mark}d\n", new)]
    assert blocks(f"Look{mark}```bash\n```edit\n{answer}```\n") == [("edit", answer)]
    # inside of a line it is no mark
    quoted = answer.replace(">>>>>>> REPLACE", f"x{mark}>>>>>>> REPLACE\n>>>>>>> REPLACE", 1)
    assert parse_blocks(quoted)[0][2] == new + f"x{mark}>>>>>>> REPLACE\n"

    async def main():
        async with start_sandbox(config, PYTEST_TASK) as sandbox:
            await sandbox.write_text("lib.py", f"a = 1\nTEXT = 1  # c{mark}d\n")
            await apply_blocks(sandbox, parse_blocks(answer))
            return await sandbox.read_text("lib.py")

    assert asyncio.run(main()) == "a = 1\n" + new


@kinds
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_turn_finds_its_place(mark, end):
    text = source(mark).replace("\n", end)
    found = turns(text, {"test_f"}, random.Random(0))["test_f"]
    changed = turned(text, found[:1])
    assert re.sub("f\\(\\) == [2-9]", "f() == 1", changed) == text != changed


@kinds
def test_similarities_count_whole_lines(mark):
    gold = change("lib.py", "a = 1\n", "a = 2\n")
    noisy = gold.replace("a = 2", f"a = 2 {mark}{mark}{mark}")
    assert diff_ratio(noisy, noisy) == 1.0 and diff_ratio(noisy, gold) == pytest.approx(5 / 6)
    for name in ("patch", "changed_lines", "hunks", "search_replace", "changed_files"):
        assert REWARDS[name].function(PYTEST_TASK, noisy, None) <= 1.0


@kinds
def test_what_is_weaker_and_what_another_encoding_holds_are_read_in_whole_lines(mark, tmp_path):
    before, after = f"[tool.x]\nname = 'a{mark}lint'\n", f"[tool.x]\nname = 'b{mark}lint'\n"
    assert weaker("pyproject.toml", before, after) == []
    [section] = split_diff(change("x.txt", "a\n", "b\n"))
    (tmp_path / "x.txt").write_bytes(f"a{mark}b\r\nneu\r\n".encode("utf-16"))
    assert _read(section, f"a{mark}b\nold\n".encode("utf-16"), tmp_path / "x.txt") and (
        section.removed,
        section.added,
    ) == (["old"], ["neu"])


@kinds
def test_statements_show_the_lines_that_a_traceback_names(mark, tmp_path):
    path = tmp_path / "test_lib.py"
    path.write_text(source(mark))
    line = next(number for number, text in enumerate(python_lines(source(mark)), 1) if "assert" in text)
    assert lines_until(path, line) == [f"assert f() == 1, 'x{mark}y'"]
    text = f"a = 'x{mark}y'\n"
    assert changed_lines(text, 2, 3) == [text.strip()]
