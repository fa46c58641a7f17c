"""Diffs as they come: each odd form gives a verdict and no exception; what git takes is seen by the reading that
decides what reaches the tests."""

import asyncio
import json
import random
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, WRONG, change
from published_helpers import PATCHES

from coderepairrl.diffs import split_diff
from coderepairrl.errors import ConfigError, ScaffoldError
from coderepairrl.grading.protected import select
from coderepairrl.grading.published import ONLY_STRICT, Entry, applied_in_folder, carried
from coderepairrl.rewards import REWARDS, grade
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.scaffolds.controls import PredictionsConfig, predictions
from coderepairrl.types import Task, VerdictKind

INSTALLED = frozenset({"json", "traceback"})
HEADERS = {  # a `diff --git` line -> all paths of its section
    "a/x.py b/x.py": {"x.py"},
    "a/x y.py b/x y.py": {"x y.py"},
    r'"a/\303\251.py" "b/\303\251.py"': {"é.py"},
    r'"a/\t\".py" b/plain.py': {'\t".py', "plain.py"},
    r'a/plain.py "b/\303\251.py"': {"plain.py", "é.py"},
    r'a/two words "b/\303\251.py"': {"two words", "é.py"},
    r'"a/\777.py" "b/\777.py"': {r'\777.py"'},  # as git: no name that C quotes, so a name as it stands
    r'"a/\400" "b/\400"': {r'\400"'},
    r'"a/\9" "b/\9"': {r'\9"'},
    r'"a/\1" "b/\1"': {r'\1"'},
    '"a/open b/open': {"open"},
    '"a/x.py" "b/x.py': {"x.py"},
    "a/x b/y b/z": {"x", "y", "z"},
    "a/x.py b/x.py\r": {"x.py"},
    '"a/\ud800" "b/\ud800"': {"?"},
    '"a/\udcff" "b/\udcff"': {"\udcff"},  # noqa: F601 - ruff takes all surrogates for one
    r'"a/\377" "b/\377"': {"\udcff"},
    r'"a/\000" "b/\000"': {"\0"},
    '"': {'"'},
    '""': set(),
    "": set(),
    " ": set(),
    '"a/x"': {"x"},
}


@pytest.mark.parametrize("header", HEADERS)
def test_the_names_of_a_header(header):
    [section] = split_diff(f"diff --git {header}\nold mode 100644\nnew mode 100755\n")
    assert section.paths == HEADERS[header] and section.made == {"100755"}


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("new file mode 120000", {"120000"}),
        ("new file mode  120000", {"120000"}),
        ("new file mode \t120000", {"120000"}),
        ("new file mode 0120000", {"120000"}),
        ("new file mode +120000", {"120000"}),
        ("new mode 100755", {"100755"}),
        ("index 000..111 120000", {"120000"}),
        ("deleted file mode 120000", set()),
        ("new file mode x", set()),
    ],
)
def test_a_mode_is_read_as_git_reads_it(tmp_path, line, made):
    """A link that git makes must not pass for a file."""
    diff = f"diff --git a/x b/x\n{line}\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+target\n\\ No newline at end of file\n"
    [section] = split_diff(diff)
    assert section.made == made
    with applied_in_folder({}, diff, ONLY_STRICT) as (root, _):
        assert root is None or not (root / "x").is_symlink() or "120000" in section.made


@pytest.mark.parametrize("words", ["rename from {}\nrename to", "rename old {}\nrename new", "copy from {}\ncopy to"])
def test_both_names_of_a_rename_are_seen(words):
    [section] = split_diff(
        f"diff --git a/conftest.py b/c.py\nsimilarity index 100%\n{words.format('conftest.py')} c.py\n"
    )
    assert section.paths == {"conftest.py", "c.py"}
    task = replace(PYTEST_TASK, files=PYTEST_TASK.files | {"conftest.py": "x = 1\n"})
    assert not select(task, section.text, INSTALLED).applied


ODD = {  # the whole diff
    "a lone surrogate in a quoted path": 'diff --git "a/\ud800" "b/\ud800"\nnew file mode 100644\n--- /dev/null\n'
    '+++ "b/\ud800"\n@@ -0,0 +1 @@\n+x\n',
    "a lone surrogate in a path": FIX.replace("lib.py", "\ud800.py"),
    "an octal beyond a byte": FIX + 'diff --git "a/\\777" "b/\\777"\nold mode 100644\nnew mode 100755\n',
    "an unterminated quote": FIX.replace("a/lib.py b/lib.py", '"a/lib.py b/lib.py'),
    "names with spaces that differ": "diff --git a/lib.py b/b c\nold mode 100644\nnew mode 100755\n" + FIX,
    "a NUL in a path": FIX + 'diff --git "a/\\000" "b/\\000"\nold mode 100644\nnew mode 100755\n',
    "CRs in the headers": FIX.replace("lib.py\n", "lib.py\r\n"),
    "CRs everywhere": FIX.replace("\n", "\r\n"),
    "a BOM": "\ufeff" + FIX,
    "UTF-16 read as Latin-1": FIX.encode("utf-16").decode("latin-1"),
    "UTF-16 read with escapes": FIX.encode("utf-16-le").decode("utf-8", "surrogateescape"),
    "NULs": FIX.replace("a + 1", "a + 1\0"),
    "numbers of 5,000 digits": FIX.replace("@@ -1,", "@@ -" + "1" * 5000 + ","),
    "a count of 5,000 digits": FIX.replace(",5 +", "," + "1" * 5000 + " +"),
    "digits of another script": FIX.replace("@@ -1,", "@@ -\u0661,"),
    "a path of 5,000 bytes": change("a/" * 2500 + "x.py", None, "x\n") + FIX,
    "a name of 300 bytes": change("a" * 300 + ".py", None, "x\n") + FIX,
    "a name of 300 bytes that is a link": "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n"
    f"@@ -0,0 +1 @@\n+{'a' * 300}\n"
    "\\ No newline at end of file\n" + FIX,
    "nothing but a header": "diff --git ",
    "nothing": "\n",
    "a hunk of nothing": "@@ -1 +1 @@\n",
    "one carriage return": "\r",
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_diff_gets_a_verdict_and_every_reward(config, case):
    verdict = asyncio.run(grade(PYTEST_TASK, ODD[case], config))
    assert verdict.kind in (
        VerdictKind.DOES_NOT_APPLY,
        VerdictKind.UNRESOLVED,
        VerdictKind.RESOLVED,
        VerdictKind.TAMPERED,
    )
    assert "\n" not in verdict.message
    for name in ("patch", "changed_lines", "changed_files", "hunks", "diff_ratio", "search_replace", "file_overlap"):
        assert 0 <= REWARDS[name].function(PYTEST_TASK, ODD[case], verdict) <= 1, name


@pytest.mark.parametrize("case", ODD)
def test_an_odd_prediction_is_applied_or_its_agents_failure(config, tmp_path, case):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({"instance_id": PYTEST_TASK.task_id, "model_patch": ODD[case]}) + "\n")
    assert "\n" not in asyncio.run(_predicted(path, config))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"model_patch": None}, ""),
        ({"model_patch": ""}, ""),
        ({"model_patch": " \n"}, ""),
        ({}, "is missing"),
        ({"model_patch": 5}, "is no text but 5"),
        ({"model_patch": 0}, "is no text but 0"),
        ({"model_patch": False}, "is no text but False"),
        ({"model_patch": [FIX]}, "is no text but ["),
        ({"model_patch": {"text": FIX}}, "is no text but {"),
        ({"model_patch": "b'" + FIX.replace("\n", "\\n") + "'"}, "does not apply"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "json", "mapping"])
def test_a_prediction_that_is_no_text_is_one_failure_and_the_others_go_on(config, tmp_path, row, said, form):
    path = tmp_path / ("predictions.jsonl" if form == "jsonl" else "predictions.json")
    rows = [{"instance_id": PYTEST_TASK.task_id} | row, {"instance_id": "other", "model_patch": FIX}]
    text = (
        "\n".join(map(json.dumps, rows))
        if form == "jsonl"
        else json.dumps(rows if form == "json" else {row["instance_id"]: row for row in rows})
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = asyncio.run(_predicted(path, config))
    assert said in found if said else found == "", found
    assert asyncio.run(_predicted(path, config, replace(PYTEST_TASK, task_id="other"))) == "applied by git apply"


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "[[]]",
        '[{"model_patch": "x"}]',
        '[{"instance_id": 5, "model_patch": "x"}]',
        "5",
        "nul",
        '"text"',
        "[" * 100_000,
    ],
)
def test_a_file_whose_rows_name_no_task_is_refused_at_once(tmp_path, text):
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no predictions in SWE-bench's format"):
        predictions(PredictionsConfig(path=str(path)))


async def _predicted(path, config, task: Task = PYTEST_TASK) -> str:
    control = predictions(PredictionsConfig(path=str(path)))
    async with start_sandbox(config, task) as sandbox:
        try:
            return await control.run(task, sandbox, None)
        except ScaffoldError as error:
            return str(error)


# ---- mutated real diffs

BINARY = (
    "diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..f76dd23\nGIT binary patch\nliteral 1\n"
    "IcmZPo000310RR91\n\nliteral 0\nHcmV?d00001\n\n"
)
SEEDS = [
    *(patch for patch, _ in PATCHES.values()),
    FIX,
    BINARY,
    'diff --git "a/\\303\\251" "b/\\303\\251"\nold mode 100644\nnew mode 100755\n',
    "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+lib.py\n"
    "\\ No newline at end of file\n",
]
PIECES = [
    "\\",
    '"',
    "\0",
    "\r",
    "\n",
    "\ud800",
    "\udcff",
    "\u2028",
    "\x0c",
    "\x1c",
    "\ufeff",
    " ",
    "\t",
    "/",
    "../",
    "a/",
    "b/",
    "@@ ",
    "--- ",
    "+++ ",
    "-",
    "+",
    "\\777",
    "\\0",
    "9" * 30,
    "diff --git ",
    "rename from ",
    "copy to ",
    "new file mode 120000\n",
    "GIT binary patch\n",
    "literal 99999999999\n",
    "delta 5\n",
    "Binary files a and b differ\n",
    "/dev/null",
    ".git/config",
    "conftest.py",
    "a" * 300,
    "index 0..1 160000\n",
    "é",
    "\U0001f600",
]


def mutated(rng: random.Random) -> str:
    text = rng.choice(SEEDS)
    for _ in range(rng.randint(1, 6)):
        at, upto = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        lines = text.split("\n")
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[min(upto, at + 9) :]
        elif kind == 2:
            text = text[:at] + rng.choice(PIECES) + text[at + 1 :]
        elif kind == 3:
            rng.shuffle(lines)
            text = "\n".join(lines) if rng.random() < 0.2 else text
        elif kind == 4:
            i = rng.randrange(len(lines))
            text = "\n".join([*lines[:i], rng.choice(lines), *lines[i:]])
        else:
            text += rng.choice(SEEDS)
    return text


@pytest.mark.parametrize("seed", range(8))
def test_mutated_diffs_are_read_without_an_exception(seed, tmp_path):
    rng = random.Random(seed)
    (tmp_path / "lib.py").write_text(WRONG)
    task = replace(PYTEST_TASK, files={}, environment=replace(PYTEST_TASK.environment, base=str(tmp_path)))
    for _ in range(500):
        diff = mutated(rng)
        sections = split_diff(diff)
        assert all(section.text in diff + "\n" for section in sections), ascii(diff)
        carried(diff)
        selection = select(task, diff, INSTALLED)
        assert selection.applied_paths <= {path for section in sections for path in section.paths}
        for name in ("patch", "changed_lines", "hunks", "diff_ratio", "search_replace", "file_overlap"):
            assert 0 <= REWARDS[name].function(task, diff, None) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_of_mutated_diffs_git_writes_no_path_that_was_not_seen(seed, tmp_path):
    """Old names of renames included, which --numstat does not list."""
    rng = random.Random(100 + seed)
    files = {
        "lib.py": Entry(WRONG.encode()),
        "d.txt": Entry(b"old\n"),
        "a.py": Entry("".join(f"x{i} = {i}\n" for i in range(20)).encode()),
    }
    taken = 0
    for _ in range(150):
        diff = mutated(rng)
        seen = {path for section in split_diff(diff) for path in section.paths}
        with applied_in_folder(files, diff, ONLY_STRICT) as (root, problem):
            assert "\n" not in problem
            if root is None or not diff.strip():
                continue
            taken += 1
            there = {
                str(path.relative_to(root)): path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()
            }
            wrote = {
                name
                for name, path in there.items()
                if path.is_symlink()
                or name not in files
                or path.read_bytes() != files[name].data
                or path.stat().st_mode & 0o111
            }
            assert wrote | (files.keys() - there.keys()) <= seen, ascii(diff)
    assert taken
