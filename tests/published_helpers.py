"""Shared by several tests: test_published.py and others."""

from judge_helpers import FIX, PYTEST_TASK, WRONG, change  # noqa: F401 - a fixture
from sandbox_helpers import make_task  # noqa: F401 - a fixture

EDIT = (
    "--- a/a.py\n+++ b/a.py\n@@ -4,7 +4,7 @@\n x3 = 3\n x4 = 4\n x5 = 5\n-x6 = 6\n+x6 = 66\n x7 = 7\n x8 = 8\n x9 = 9\n"
)


DIFFERS = (
    "diff --git a/new.bin b/new.bin\nnew file mode 100644\nindex 0000000..c866266\n"
    "Binary files /dev/null and b/new.bin differ\n"
)


LEFT_OUT = ", without new.bin (the patch does not hold the content of this binary file)"


STRICT, FUZZ = "applied by git apply", "applied by patch --fuzz=5"


PATCHES = {  # patch, how it is applied, files whose text the edit is in
    "as git writes it": (EDIT, STRICT),
    "without its last newline": (EDIT.rstrip("\n"), STRICT),
    "stripped of its last empty line": (change("lib.py", WRONG, WRONG.replace("a + 2", "a + 1")).rstrip(), STRICT),
    "with mail around it": (f"From: a\nSubject: b\n\n---\n{EDIT}-- \n2.39\n", STRICT),
    "CRLF on CRLF": ("--- a/crlf.py\n+++ b/crlf.py\n@@ -1,3 +1,3 @@\n a = 1\r\n-b = 2\r\n+b = 3\r\n c = 3\r\n", STRICT),
    "CRLF on LF": (EDIT.replace("\n", "\r\n"), FUZZ),
    "wrong counts": (EDIT.replace("-4,7 +4,7", "-4,9 +4,9"), FUZZ),
    "too small counts": (EDIT.replace("-4,7 +4,7", "-4,5 +4,5"), STRICT),
    "context that needs fuzz": (EDIT.replace(" x3 = 3\n", " y3 = 3\n"), FUZZ),
    "two files, of which one needs fuzz": (
        change("d.txt", "old\n", "new\n") + EDIT.replace(" x9 = 9\n", " y9 = 9\n"),
        FUZZ,
    ),
    "a file that is nowhere": (change("nowhere.py", "a\n", "b\n"), ""),
    "no patch": ("I changed a.py\n", ""),
    "a lone surrogate": (EDIT.replace("66", "\ud800"), ""),
    "binary files differ": (DIFFERS + EDIT, STRICT + LEFT_OUT),
    "binary files differ, last and without newline": (EDIT + DIFFERS.rstrip(), STRICT + LEFT_OUT),
    "binary files differ and fuzz": (DIFFERS + EDIT.replace(" x3 = 3\n", " y3 = 3\n"), FUZZ + LEFT_OUT),
    "only binary files that differ": (DIFFERS, STRICT + LEFT_OUT),
    "a file that becomes a link": (
        change("d.txt", "old\n", None)
        + "diff --git a/d.txt b/d.txt\nnew file mode 120000\n--- /dev/null\n+++ b/d.txt\n@@ -0,0 +1 @@\n+a.py\n"
        "\\ No newline at end of file\n",
        STRICT,
    ),
    "a rename with an edit": (
        "diff --git a/a.py b/b.py\nsimilarity index 90%\nrename from a.py\nrename to b.py\n"
        + EDIT.replace("b/a.py", "b/b.py"),
        STRICT,
    ),
    "a mode": ("diff --git a/d.txt b/d.txt\nold mode 100644\nnew mode 100755\n", STRICT),
}
