"""Turned tests: what passed must fail, by what is expected, also where an object equals everything."""

import ast
import random
import re
import subprocess
import sys
import textwrap

import pytest

from coderepairrl.grading.expectations import turns
from coderepairrl.grading.turns import ERROR, EXPECTED, FAILURE, NAMED, OPPOSITE, ORDER, TABLE, turned

LIB = """
    class Bad(Exception):
        pass

    def f(a):
        if a is None:
            raise TypeError("no number at all")
        if a < 0:
            raise ValueError("below zero")
        return a + 1

    def check(value, expected):
        if value != expected:
            raise AssertionError
    """
SAME = """
    import contextlib
    import pytest
    import unittest

    class Same(int):
        def __eq__(self, other): return True
        def __ne__(self, other): return False
        def __gt__(self, other): return True
        def __lt__(self, other): return True
        def __le__(self, other): return True
        def __ge__(self, other): return True
        def __str__(self): return "2"
        __hash__ = int.__hash__

    @contextlib.contextmanager
    def content(*a, **k):
        try:
            yield
        except Exception:
            pass

    pytest.raises = content
    unittest.TestCase.assertRaises = content

    def f(a):
        return Same(a if a is not None else 0)

    def check(value, expected):
        pass
    """
UNITTEST = "class T(unittest.TestCase):\n    def test_it(self):\n"
FORMS = {  # what the test says -> how the turn that is tried first is found
    "assert f(1) == 2": EXPECTED,
    "assert 2 == f(1)": EXPECTED,
    "assert f(1) == 1 + 1": EXPECTED,
    "for a in (1, 2):\n    assert f(a) == a + 1": EXPECTED,
    "with open(__file__):\n    assert f(1) == 2": EXPECTED,
    "assert f(1) in (2, 12)": EXPECTED,
    "assert f(1) == pytest.approx(2)": EXPECTED,
    "assert [f(1), f(2)] == [2, 3]": EXPECTED,
    "check(f(1), 2)": EXPECTED,
    "check(f(1), expected=2)": EXPECTED,
    "assert f(1) == 2, 'two'": EXPECTED,
    "assert f(1) % 2 == 0 and True": EXPECTED,
    "self.assertEqual(f(1), 2)": EXPECTED,
    "self.assertEqual(2, f(1))": EXPECTED,
    "self.assertEqual(f(1), 2, msg='two')": EXPECTED,
    "for a in (1, 2):\n    with self.subTest(a=a):\n        self.assertEqual(f(a), a + 1)": EXPECTED,
    "self.assertIn(f(1), [2, 12])": EXPECTED,
    "self.assertAlmostEqual(f(1), 2)": EXPECTED,
    "with pytest.raises(ValueError):\n    f(-1)": ERROR,
    "with pytest.raises((ValueError, KeyError)):\n    f(-1)": ERROR,
    "with pytest.raises(ValueError, match='below'):\n    f(-1)": ERROR,
    "with self.assertRaises(ValueError):\n    f(-1)": ERROR,
    "self.assertRaises(ValueError, f, -1)": ERROR,
    "wanted = 2\nassert f(1) == wanted": NAMED,
    "wanted = {'a': 2}\nassert {'a': f(1)} == wanted": NAMED,
    "assert f(1) == WANTED": NAMED,
    "for a, b in [(1, 2), (2, 3)]:\n    assert f(a) == b": TABLE,
    "for a, b in ROWS:\n    assert f(a) == b": TABLE,
    "assert f(1) < 3": ORDER,
    "assert f(1) >= 2": ORDER,
    "assert -1 <= f(1)": ORDER,
    "self.assertLess(f(1), 3)": ORDER,
    "self.assertGreater(f(1), 1.5)": ORDER,
}
ONLY_OPPOSITE = (
    "assert bool(f(1))",
    "assert not f(-0) == f(1) - f(1)",
    "self.assertTrue(f(1))",
    "a = b = f(1)\nassert a == b",
)
HEAD = "import unittest\n\nimport pytest\n\nfrom lib import check, f\n\nWANTED = 2\nROWS = [(1, 2), (2, 3)]\n\n\n"


def module_of(body: str) -> str:
    if "self." in body:
        return HEAD + UNITTEST + textwrap.indent(body, " " * 8) + "\n"
    return HEAD + "def test_it():\n" + textwrap.indent(body, " " * 4) + "\n"


def run(folder, lib: str, files: dict[str, str]) -> dict[str, bool]:
    """File -> whether its tests pass."""
    folder.mkdir()
    (folder / "lib.py").write_text(textwrap.dedent(lib))
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--tb=no", "."],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    passed = {line.split("::")[0][len("PASSED test_") : -3] for line in lines if line.startswith("PASSED")}
    failed = {line.split("::")[0].split(" test_")[-1][:-3] for line in lines if re.match("(SUB)?FAILED", line)}
    assert passed | failed == set(files), done.stdout[-3000:]
    return {name: name not in failed for name in files}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Every form with its first turn, three times at random: by honest code, and by code that is content with
    everything."""
    files, ranks = {}, {}
    for i, body in enumerate(FORMS):
        for seed in range(3):
            first = turns(module_of(body), {"test_it"}, random.Random(seed))["test_it"][0]
            files[f"{i}_{seed}"] = turned(module_of(body), [first])
            ranks[f"{i}_{seed}"] = first.rank
    plain = {str(i): module_of(body) for i, body in enumerate(FORMS)}
    folder = tmp_path_factory.mktemp("turns")
    return {
        "honest": run(folder / "a", LIB, plain),
        "honest turned": run(folder / "b", LIB, files),
        "content": run(folder / "c", SAME, plain),
        "content turned": run(folder / "d", SAME, files),
        "files": files,
        "ranks": ranks,
    }


@pytest.mark.parametrize("number", range(len(FORMS)), ids=[body[:40].replace("\n", " ") for body in FORMS])
def test_the_first_turn_is_of_what_is_expected_and_fails(ran, number):
    body, rank = list(FORMS.items())[number]
    assert ran["honest"][str(number)]
    for seed in range(3):
        name = f"{number}_{seed}"
        assert ran["ranks"][name] == rank
        assert ran["files"][name] != module_of(body)
        assert not ran["honest turned"][name], ran["files"][name]


@pytest.mark.parametrize("number", range(len(FORMS)), ids=[body[:40].replace("\n", " ") for body in FORMS])
def test_what_is_content_with_everything_passes_turned_too(ran, number):
    """So it is found. A form that such code doesn't even pass needs no finding."""
    if ran["content"][str(number)]:
        assert all(ran["content turned"][f"{number}_{seed}"] for seed in range(3))


@pytest.mark.parametrize("body", ONLY_OPPOSITE)
def test_without_anything_expected_the_opposite_is_asserted(body):
    found = turns(module_of(body), {"test_it"}, random.Random(0))["test_it"]
    assert OPPOSITE in {turn.rank for turn in found}
    ast.parse(turned(module_of(body), [next(turn for turn in found if turn.rank == OPPOSITE)]))


@pytest.mark.parametrize("body", [*FORMS, *ONLY_OPPOSITE])
def test_every_turn_is_python_changes_the_file_and_keeps_the_rest(body):
    text = module_of(body)
    for turn in turns(text, {"test_it"}, random.Random(1))["test_it"]:
        changed = turned(text, [turn])
        ast.parse(changed)
        assert changed != text
        if turn.rank not in (FAILURE, OPPOSITE, ORDER, ERROR) and len(turn.edits) == 1:
            assert len(changed) in (len(text), len(text) - 1, len(text) + 1)  # False for True


def test_parametrize_is_turned_in_the_column_that_is_compared_with():
    text = (
        "import pytest\nfrom lib import f\n\n@pytest.mark.parametrize('a, b', [(10, 20), (30, 40)])\n"
        "def test_it(a, b):\n    assert f(a) == b\n"
    )
    for seed in range(9):
        first = turns(text, {"test_it"}, random.Random(seed))["test_it"][0]
        changed = turned(text, [first])
        assert (
            first.rank == TABLE
            and "(10, " in changed
            and "(30, " in changed
            and "(10, 20)" not in changed
            and "(30, 40)" not in changed
        )


def test_each_row_of_parametrize_is_turned_however_it_is_written():
    rows = "[pytest.param(10, 'a', id='x'), (30, 'b'), [50, 'c']]"
    text = (
        f"import pytest\nfrom lib import f\n\n@pytest.mark.parametrize(['a', 'b'], {rows})\ndef test_it(a, b):\n"
        "    assert f(a) == b\n"
    )
    changed = turned(text, turns(text, {"test_it"}, random.Random(0))["test_it"][:1])
    assert (
        all(kept in changed for kept in ("10", "30", "50", "id='x'"))
        and not any(f"'{was}')" in changed for was in "ab")
        and "'c'" not in changed
    )
    one = (
        "import pytest\nfrom lib import f\n\n@pytest.mark.parametrize('b', [10, pytest.param(30, marks=())])\n"
        "def test_it(b):\n    assert f(1) == b\n"
    )
    changed = turned(one, turns(one, {"test_it"}, random.Random(0))["test_it"][:1])
    assert "[10," not in changed and "param(30" not in changed


def test_functions_of_one_name_are_turned_together():
    text = (
        "class A:\n    def test_it(self):\n        assert 1 == 1\n\nclass B:\n    def test_it(self):\n"
        "        assert 22 == 22\n"
    )
    changed = turned(text, turns(text, {"test_it"}, random.Random(0))["test_it"][:1])
    assert "1 == 1\n" not in changed.replace("22 == 22", "") and "22 == 22" not in changed


def test_two_turns_that_overlap_leave_the_first():
    text = "def test_a():\n    assert f() == 5\n"
    found = turns(text, {"test_a"}, random.Random(0))["test_a"]
    twice = turned(text, [found[0], found[0]])
    assert twice == turned(text, found[:1])


@pytest.mark.parametrize(
    "constant",
    [
        "0",
        "7",
        "10",
        "0x1f",
        "1_000",
        "2.5",
        "0.001",
        "1e9",
        "3j",
        "'a'",
        '"abc"',
        "''",
        "b'x'",
        "r'\\d+'",
        "'\\n'",
        "'é'",
        "'''long\ntext'''",
        "True",
        "None",
        "'a' 'b'",
        "'\\x41'",
        "u'x'",
    ],
)
def test_a_near_constant_is_of_the_same_kind(constant):
    text = f"def test_it():\n    assert f() == ({constant})\n"
    for seed in range(20):
        for turn in turns(text, {"test_it"}, random.Random(seed))["test_it"]:
            if turn.rank != EXPECTED:
                continue
            value = ast.parse(turned(text, [turn])).body[0].body[0].test.comparators[0]
            found, before = ast.literal_eval(value), ast.literal_eval(constant.strip())
            assert type(found) is type(before) and found != before


@pytest.mark.parametrize("text", ["def test_it(:\n", "\0", "x = 1\n", "(" * 10_000])
def test_what_cannot_be_read_has_no_turns(text):
    assert turns(text, {"test_it"}, random.Random(0)) == {}


@pytest.mark.parametrize(
    "body",
    [
        "    '''Docstring 5.'''\n    assert f(1) == 2",
        "    f'{1} is {2}'\n    assert f(1) == 2",
        "    assert f(1) == 2, 'message 5'",
    ],
)
def test_docstrings_messages_and_f_strings_stay(body):
    text = f"def test_it():\n{body}\n"
    kept = [line for line in body.split("\n") if "assert" not in line] or ["'message 5'"]
    for turn in turns(text, {"test_it"}, random.Random(0))["test_it"]:
        assert turn.rank == FAILURE or all(part.strip() in turned(text, [turn]) for part in kept)


def test_lines_are_counted_as_python_counts_them():
    text = "x = 'a\x0cb\u2028c'\r\ndef test_it():\r\n    assert f(1) == 2\r\n"
    changed = turned(text, turns(text, {"test_it"}, random.Random(0))["test_it"][:1])
    assert changed.startswith("x = 'a\x0cb\u2028c'\r\n") and "== 2" not in changed and changed.count("\r\n") == 3
