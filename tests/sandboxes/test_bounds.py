"""A diff beyond what one may be does not apply, and says why: by what its words say, and by what git takes where they
lie."""

import asyncio
import base64
import hashlib
import os
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from judge_helpers import FIX, PYTEST_TASK, WRONG, change
from sandbox_helpers import make_task

from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.grading.published import ONLY_STRICT, applied_in_folder, apply_published
from coderepairrl.rewards import REWARDS, Grader, grade
from coderepairrl.sandboxes import diff_bounds
from coderepairrl.sandboxes.diff_bounds import too_large, too_many, why_no_path
from coderepairrl.sandboxes.overlay import remove
from coderepairrl.tasks.patches import patched
from coderepairrl.types import VerdictKind

MIB = 1 << 20


def hunk(kind: str, declared: int | str, raw: bytes) -> str:
    """One of git's binary hunks; what it declares need not be so."""
    data, lines = zlib.compress(raw, 9), []
    for part in (data[i : i + 52] for i in range(0, len(data), 52)):
        length = chr(ord("A") + len(part) - 1) if len(part) <= 26 else chr(ord("a") + len(part) - 27)
        lines.append(f"{length}{base64.b85encode(part, pad=True).decode()}\n")
    return f"{kind} {declared}\n{''.join(lines)}\n"


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def binary(path: str, *hunks: str, old: bytes | None = None, result: str = "1" * 40) -> str:
    made = "new file mode 100644\n" if old is None else ""
    ids = f"{'0' * 40}..{result}" if old is None else f"{blob(old)}..{result} 100644"
    return f"diff --git a/{path} b/{path}\n{made}index {ids}\nGIT binary patch\n{''.join(hunks)}"


def varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


NOTHING = hunk("literal", 0, b"")
OLD = b"a" * 0xFFFF
COPY = b"\xb0\xff\xff"  # of the first 0xffff bytes of what was there
COPIES = 20_000  # 60 kB that stand for 1.3 GB
COPY_BOMB = varint(len(OLD)) + varint(COPIES * len(OLD)) + COPY * COPIES


def modes(number: int) -> str:
    return "".join(f"diff --git a/x{i} b/x{i}\nold mode 100644\nnew mode 100755\n" for i in range(number))


def made(path: str, lines: int = 1) -> str:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{lines} @@\n"
        + "+x\n" * lines
    )


SMALL = {
    "MAX_DIFF_BYTES": 60_000,
    "MAX_LINES": 2000,
    "MAX_SECTIONS": 100,
    "MAX_HEADER_BYTES": 20_000,
    "MAX_ENTRIES": 500,
    "MEMORY_BYTES": 256 * MIB,
}
BEYOND = {  # diff, why it is refused (under SMALL)
    "a bomb that says its size": (
        binary("x.bin", hunk("literal", 1500 * MIB, bytes(MIB)), NOTHING),
        "its binary parts",
    ),
    "many hunks that are too much together": (
        "".join(binary(f"x{i}.bin", hunk("literal", 7 * MIB, b"x"), NOTHING) for i in range(10)),
        "its binary parts",
    ),
    "the way back": (binary("x.bin", NOTHING, hunk("literal", 65 * MIB, b"x")), "its binary parts"),
    "a size that is negative": (binary("x.bin", hunk("literal", -1, b"x")), "its binary parts"),
    "a size of 5,000 digits": (binary("x.bin", hunk("literal", "9" * 5000, b"x")), "its binary parts"),
    "a bomb that lies": (binary("x.bin", hunk("literal", 10, bytes(4 * MIB)), NOTHING), "corrupt binary patch"),
    "copies that multiply": (
        binary("d.bin", hunk("delta", len(COPY_BOMB), COPY_BOMB), NOTHING, old=OLD),
        "256 MiB of memory",
    ),
    "one long line": (made("x.py").replace("+x", "+" + "x" * 70_000), "it has more than"),
    "many lines": (made("x.py", 3000), "2000 lines"),
    "many modes": (modes(300), "100 files"),
    "many hunks of no file": ("--- a/lib.py\n+++ b/lib.py\n" + "@@ -1 +1 @@\n-a\n+b\n" * 700, "2000 lines"),
    "many plain headers": ("--- a/lib.py\n+++ b/lib.py\n@@ -1 +1 @@\n" * 300, "100 files"),
    "long headers": ("".join(made("a/" * 400 + f"x{i}") for i in range(20)), "its headers"),
    "many renames of one section": (
        "diff --git a/x b/x\n" + "".join(f"rename from {'a' * 40}{i}\n" for i in range(500)),
        "its headers",
    ),
    "a deep path": (made("a/" * 600 + "x"), "'a/a/"),
    "a long name": (made("a" * 300), ""),
    "many folders": (
        "".join(made("/".join(f"{i}" for _ in range(60)) + "/x") for i in range(20)),
        "500 files and folders",
    ),
    "a file copied often": (
        "".join(
            f"diff --git a/big.bin b/c{i}\nsimilarity index 100%\ncopy from big.bin\ncopy to c{i}\n" for i in range(90)
        ),
        "256 MiB of memory",
    ),
}
FILES = {"lib.py": WRONG, "d.bin": OLD.decode(), "big.bin": "b" * (4 * MIB)}


@pytest.fixture
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(diff_bounds, name, value)


@pytest.mark.parametrize("case", BEYOND)
def test_what_is_beyond_does_not_apply_and_leaves_nothing(use, small, case):
    diff, why = BEYOND[case]

    async def body(sandbox):
        return await sandbox.apply(diff), await apply_published(sandbox, diff), await sandbox.diff()

    said, applied, left = use("bubblewrap", body, make_task(FILES))
    assert why in said and said and "\n" not in said and len(said) <= 400, said
    assert applied.problem and not applied.how and left == ""


@pytest.mark.parametrize("case", BEYOND)
def test_it_is_a_verdict_of_the_judge_and_of_every_reward(config, small, case):
    task = replace(PYTEST_TASK, files=PYTEST_TASK.files | {"d.bin": OLD.decode(), "big.bin": FILES["big.bin"]})
    verdict = asyncio.run(grade(task, BEYOND[case][0], config))
    assert (
        verdict.kind in (VerdictKind.DOES_NOT_APPLY, VerdictKind.UNRESOLVED, VerdictKind.TAMPERED)
        and not verdict.resolved
    ), verdict
    assert verdict.dropped_paths or verdict.kind == VerdictKind.DOES_NOT_APPLY
    for name in ("patch", "changed_lines", "changed_files", "hunks", "diff_ratio", "search_replace", "file_overlap"):
        assert REWARDS[name].function(task, BEYOND[case][0], verdict) == 0.0, name


@pytest.mark.parametrize("case", [case for case in BEYOND if BEYOND[case][1].startswith(("it", "its", "256"))])
def test_a_row_of_a_data_set_is_refused_too(small, case):
    with pytest.raises(TaskError, match="field patch: .*leave the row out"):
        patched("t", "patch", None, FILES, BEYOND[case][0] + FIX)


def test_a_real_bomb_of_some_mebibytes(use):
    """Two MiB on the disk, 1.5 GB by its word and in truth; and the same with a word that hides it from the first
    look."""
    raw = bytes(1500 * MIB)
    bomb = binary("x.bin", hunk("literal", len(raw), raw), NOTHING)
    del raw
    assert 1.5 * MIB < len(bomb) < 3 * MIB

    async def body(sandbox):
        hidden = bomb.replace("literal 1572864000", "literal 0001\t572864000")
        return await sandbox.apply(bomb), await sandbox.apply(hidden), (await apply_published(sandbox, bomb)).problem

    first, second, third = use("bubblewrap", body)
    assert (
        first == third == "its binary parts come to more than the 64 MiB of one diff"
        and "corrupt binary patch" in second
    )


def test_git_is_stopped_by_its_time(use, monkeypatch):
    """A hunk of half of a file whose lines are all the same is compared at every line of the other half: 400 kB for
    minutes."""
    monkeypatch.setattr(diff_bounds, "CPU_S", 1)
    half = 100_000
    diff = (
        f"--- a/n.txt\n+++ b/n.txt\n@@ -2,{half + 2} +2,{half + 2} @@\n{chr(32)}3\n"
        + " 3\n" * (half - 1)
        + "-x\n+y\n 3\n"
    )

    async def body(sandbox):
        return await sandbox.apply(diff), await sandbox.diff()

    assert use("bubblewrap", body, make_task({"n.txt": "3\n" * 2 * half})) == ("it takes more than 1 s to apply", "")


def test_what_an_honest_diff_needs_is_within(use):
    """As much as a checkout's own diff may hold: 32 MiB of text in 2,000 new files, and a binary file."""
    line = "x" * 63 + "\n"
    diff = "".join(
        made(f"pkg{i % 50}/sub/m{i}.py", 1).replace("+1,1 @@\n+x\n", f"+1,{16 * 16} @@\n" + f"+{line}" * 256)
        for i in range(1990)
    )
    data = os.urandom(400_000)
    diff += binary("x.bin", hunk("literal", len(data), data), NOTHING, result=blob(data))
    assert not too_large(diff) and len(split_diff(diff)) == 1991

    async def body(sandbox):
        return await sandbox.apply(diff), sum(1 for _ in sandbox.root.glob("pkg*/sub/*"))

    assert use("bubblewrap", body) == ("", 1990)


def test_applied_in_a_folder_is_under_the_same_limits(small):
    from coderepairrl.grading.published import Entry

    with applied_in_folder({"d.bin": Entry(OLD)}, BEYOND["copies that multiply"][0], ONLY_STRICT) as (root, problem):
        assert root is None and problem == "it takes more than 256 MiB of memory to apply"


@pytest.mark.parametrize(
    "name",
    [
        "No space left on device",
        "docs/Cannot allocate memory.md",
        "a Read-only file system",
        "out of memory.py",
        "Input/output error",
        "unable to write",
        "memory exhausted",
        "x: Disk quota exceeded",
    ],
)
def test_a_files_name_blames_neither_the_machine_nor_the_size(use, name):
    """It was an infrastructure error, which counts for nothing, or kept the laxer tries from being made."""
    from coderepairrl.grading.published import LAXER, Entry

    wrong, fuzzy = (f"--- a/{name}\t\n+++ b/{name}\t\n@@ -1,3 +1,3 @@\n {first}\n-b\n+c\n d\n" for first in ("zz", "A"))

    async def body(sandbox):
        return await sandbox.apply(wrong.replace("-b", "-bb"))

    assert "patch failed" in use("bubblewrap", body, make_task({name: "a\nb\nd\n"}))
    with applied_in_folder({name: Entry(b"a\nb\nd\n")}, fuzzy, ONLY_STRICT | LAXER) as (root, problem):
        assert not problem and (root / name).read_bytes() == b"a\nc\nd\n"


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ("a/b.py", True),
        ("ü/" + "é" * 100, True),
        ("a" * 255, True),
        ("a" * 256, False),
        ("é" * 128, False),
        ("a/" * 600, False),
        ("a\0", False),
        ("\udcff", True),
        ("\ud800", False),
    ],
)
def test_which_names_a_file_may_have(path, fine):
    assert (not why_no_path(path)) == fine == (not too_many([path]))


ROWS = {
    "quotes": "'" + "\\'" * 200_000,
    "double quotes": '"' + '\\"' * 200_000,
    "backslashes": "\\" * 200_000,
    "odd": "'\\" * 100_000,
}


@pytest.mark.parametrize("suffix", ["py", "c", "toml"])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_quotes_is_read_in_one_pass(config, row, suffix):
    """Each quote was tried as the beginning of a string: 80 kB took minutes, in which nothing else ran."""
    diff = change(f"x.{suffix}", None, ROWS[row] + "\n") + FIX
    grader = Grader(config)
    assert asyncio.run(grader.grade(PYTEST_TASK, diff)).kind == VerdictKind.RESOLVED
    assert 0 < REWARDS["patch"].function(PYTEST_TASK, diff, None) <= 1


@pytest.mark.parametrize("depth", [100, 1200, 3000])
def test_folders_nested_deeper_than_pythons_stack_are_watched_and_removed(use, depth):
    nest = (
        f"import os\nfor i in range({depth}): os.mkdir('a'); os.chdir('a')\n"
        "open('x', 'w').close(); os.chmod('.', 0o000)"
    )

    async def body(sandbox):
        result = await sandbox.run(["python3", "-c", nest])
        await asyncio.to_thread(sandbox._disk_overused)
        return result.exit_code, await sandbox.diff()

    # not in pytest's own folder, which it could not remove either if this were ended halfway
    scratch = Path(tempfile.mkdtemp())
    try:
        code, diff = use("bubblewrap", body, scratch=scratch)
        assert not list(scratch.glob("*/live/*"))
    finally:
        remove(scratch)
    assert code == 0 and diff.count("diff --git") <= 1
