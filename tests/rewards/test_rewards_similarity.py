"""What patch similarity must not be fooled by, and what the similarities of the literature give."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_helpers import PYTEST_TASK, change

from coderepairrl.rewards import REWARDS, patch_similarity
from coderepairrl.rewards.sequences import common_ratio, differences, ratio
from coderepairrl.rewards.similarity import SIMILARITIES

BODY = "".join(
    f"def f{i}(a):\n    value = a * {i}\n    if value > {i}:\n        return value\n    return {i}\n\n\n"
    for i in range(4)
)
GOLD_BODY = (
    BODY.replace("value > 2", "value >= 2").replace("a * 1", "a + 1").replace("    return 3\n", "    return -3\n")
)
GOLD = change("lib.py", BODY, GOLD_BODY)


def test_the_oracle_is_one_also_with_other_headers_and_order():
    two = GOLD + change("b.py", "x = 1\n", "x = 2\n")
    swapped = change("b.py", "x = 1\n", "x = 2\n") + GOLD
    assert patch_similarity(GOLD, GOLD) == patch_similarity(two, swapped) == 1.0
    assert patch_similarity(GOLD.split("\n", 1)[1], GOLD) == 1.0  # no `diff --git` line
    assert patch_similarity(GOLD, two) == 0.5 and patch_similarity(two, GOLD) == 0.5


@pytest.mark.parametrize(
    "new",
    [
        BODY,
        BODY.replace("    if", "    # fix\n    if"),
        BODY.replace("a * 1", "a * 1  # fix"),
        BODY.replace("    return 3", "        return 3"),
        BODY.replace("\n\n\n", "\n\n\n\n"),
        BODY.replace("value = a", "value  =  a"),
        "# a\n# b\n" + BODY,
    ],
)
def test_comments_whitespace_and_nothing_score_zero(new):
    assert patch_similarity(change("lib.py", BODY, new) if new != BODY else "", GOLD) == 0.0


def test_comments_of_other_languages_score_zero():
    java = "class A {\n    int f() { return 1; }\n}\n"
    gold = change("A.java", java, java.replace("1", "2"))
    for new in (
        java.replace("{\n", "{\n    // return 2;\n"),
        java.replace("{\n", "{\n    /*\n     * return 2;\n     */\n", 1),
        java.replace("1; }", "1; } /* 2 */"),
    ):
        assert patch_similarity(change("A.java", java, new), gold) == 0.0
    assert patch_similarity(gold, gold) == 1.0


def test_deleting_is_worth_less_than_half_and_near_more_than_far():
    deleted = change(
        "lib.py",
        BODY,
        BODY.replace("    if value > 2:\n", "").replace("    value = a * 1\n", "").replace("    return 3\n", ""),
    )
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
    assert (
        patch_similarity(gold, gold) == 1.0
        and patch_similarity(change("lib.py", "x = '#a'\n", "x = '#a' # b\n"), gold) == 0.0
    )


FAULTY = ["    value = a * 1", "    if value > 2:", "    return 3"]
NO_OPS = {  # each line that the oracle takes out, known beforehand, with all of its tokens and without a repair
    "a pass before it": lambda line: f"{indent(line)}pass; {line.strip()}",
    "a semicolon behind it": lambda line: line if line.endswith(":") else f"{line};",
    "a name before it": lambda line: f"{indent(line)}None; {line.strip()}",
    "a text before it": lambda line: f"{indent(line)}'{line.strip()}'; {line.strip()}",
    "an assignment before it": lambda line: f"{indent(line)}x = 0; {line.strip()}",
    "on two lines": lambda line: f"{indent(line)}pass\n{line}",
    "twice": lambda line: f"{line}\n{line}",
    "in parentheses": lambda line: re.sub(r"(= |if |return )([^:]*)", r"\1(\2)", line),
    "under a condition": lambda line: (
        f"{indent(line)}if True: {line.strip()}" if not line.endswith(":") else f"{line} "
    ),
    "not not": lambda line: re.sub(r"(= |if |return )", r"\1not not ", line),
    "and zero": lambda line: f"{line.rstrip(':')} + 0{':' * line.endswith(':')}",
    "another name beside it": lambda line: line.replace("value =", "value = other ="),
    "a line further": lambda line: f"{line}\n{indent(line)}0",
}


def indent(line):
    return line[: len(line) - len(line.lstrip())]


@pytest.mark.parametrize("how", NO_OPS)
def test_a_line_that_comes_back_with_its_tokens_is_next_to_nothing(how):
    diff = change("lib.py", BODY, "\n".join(NO_OPS[how](line) if line in FAULTY else line for line in BODY.split("\n")))
    assert patch_similarity(diff, GOLD) <= 0.3, patch_similarity(diff, GOLD)


def test_an_oracle_that_only_breaks_lines_anew_is_one():
    gold = change("lib.py", "x = f(1, 2)\n", "x = f(1,\n      2)\n")
    assert (
        patch_similarity(gold, gold) == 1.0
        and patch_similarity(change("lib.py", "x = f(1, 2)\n", "x = 5\n"), gold) < 0.8
    )


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abcd"), max_size=9))
def test_common_subsequences_are_the_longest(a, b):
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if one == other else max(lengths[i][j + 1], lengths[i + 1][j])
    only_a, only_b = differences(a, b)
    kept = [[one for place, one in enumerate(side) if place not in only] for side, only in ((a, only_a), (b, only_b))]
    assert kept[0] == kept[1] and len(kept[0]) == lengths[-1][-1] and ratio(a, b) <= common_ratio(a, b) + 1e-9
    assert common_ratio(a, b) == (2 * lengths[-1][-1] / (len(a) + len(b)) if a or b else 1.0)


@pytest.mark.parametrize("name", ["patch", *SIMILARITIES])
def test_no_sequence_keeps_a_similarity_long(name):
    """What repeats often takes difflib the cube of the length: minutes for these."""
    old, new = ["x\n", "y\n"] * 1200, ["y\n", "x\n", "x\n"] * 800
    diff = "diff --git a/lib.py b/lib.py\n--- a/lib.py\n+++ b/lib.py\n@@ -1,2400 +1,2400 @@\n" + "".join(
        ["-" + line for line in old] + ["+" + line for line in new]
    )
    gold = diff.replace("\n+x\n+x\n", "\n+x\n+z\n", 50)
    started = time.monotonic()
    assert 0.0 <= REWARDS[name].function(replace(PYTEST_TASK, oracle_patch=gold), diff, None) <= 1.0
    assert time.monotonic() - started < 5.0


# ---- the literature's


@pytest.mark.parametrize("name", SIMILARITIES)
def test_gold_is_one_and_what_has_nothing_of_it_is_zero(name):
    similarity, two = SIMILARITIES[name], GOLD + change("b.py", "x = 1\n", "x = 2\n")
    elsewhere = change("other.py", "y = 1\n", "z = 5\n")
    assert similarity(GOLD, GOLD) == similarity(two, two) == 1.0
    assert similarity("", GOLD) == similarity("no diff", GOLD) == 0.0 and 0.0 < similarity(GOLD, two) < 1.0
    assert similarity(elsewhere, GOLD) < (0.15 if name == "diff_ratio" else 0.01)  # headers count in it
    # no context, no old side
    assert similarity(change("new.py", None, "x = 1\n"), change("new.py", None, "x = 1\n")) == 1.0


def test_what_each_of_them_can_be_fooled_by():
    """As published: the raw ratio pays comments and deletions, file overlap pays anything in the right file, changed
    lines pay half for deletions."""
    comment = "".join(
        line + ("+# fix\n" if line.startswith("@@") else "")
        for line in change("lib.py", BODY, BODY.replace("a * 1", "a * 1 ")).splitlines(True)
    )
    deletes = change(
        "lib.py",
        BODY,
        BODY.replace("    if value > 2:\n", "").replace("    value = a * 1\n", "").replace("    return 3\n", ""),
    )
    swapped = change("b.py", "x = 1\n", "x = 2\n") + GOLD
    scores = {name: (similarity(comment, GOLD), similarity(deletes, GOLD)) for name, similarity in SIMILARITIES.items()}
    assert scores["file_overlap"] == (1.0, 1.0) and scores["diff_ratio"][1] > scores["changed_lines"][1] > 0.3
    assert SIMILARITIES["changed_lines"](swapped, GOLD) < 1.0 and SIMILARITIES["changed_files"](swapped, GOLD) == 0.5


@given(
    st.lists(
        st.sampled_from(
            [
                GOLD,
                GOLD[:200],
                "diff --git a/x b/x\n",
                "@@ -1 +1 @@\n",
                "-a\n",
                "+b\r\n",
                "\r",
                "\0",
                "é",
                "\udcff",
                "--- a/x\n+++ b/x\n",
                "@@ -1,3 +1,3 @@ def f\n",
                "\n",
                "rename from a\n",
                "Binary files a/x and b/x differ\n",
            ]
        ),
        max_size=10,
    )
)
def test_any_text_has_a_similarity(pieces):
    diff = "".join(pieces)
    for similarity in SIMILARITIES.values():
        assert 0.0 <= similarity(diff, GOLD) <= 1.0 and 0.0 <= similarity(GOLD, diff) <= 1.0


def test_the_documents_table_is_what_the_program_prints():
    """Its header's kinds of patches, and each similarity that is a reward, are in docs/rewards.md; the table of a few
    oracles has a one for gold everywhere."""
    folder = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(folder / "analysis"))
    try:
        import similarities
    finally:
        sys.path.pop(0)
    printed = similarities.table([GOLD, change("b.py", "x = 1\n", "x = 2\n")])
    header, _, *rows = printed.splitlines()
    document = (folder / "docs" / "rewards.md").read_text()
    assert header in document
    for row in rows[:-2]:
        name, gold, *_, empty = [cell.strip() for cell in row.strip("|").split("|")]
        assert f"| {name} |" in document and name.strip("`") in REWARDS and gold == "1.000" and empty == "0.000"
    patches = [make(GOLD, change("b.py", "x = 1\n", "x = 2\n")) for make in similarities.PATCHES.values()]
    applied = subprocess.run(["git", "apply", "--numstat", "-"], input=patches[1], capture_output=True, text=True)
    assert (
        applied.returncode == 0
        and patch_similarity(patches[1], GOLD)
        == patch_similarity(patches[4], GOLD)
        == patch_similarity(patches[3], GOLD)
        == 0.0
    )
