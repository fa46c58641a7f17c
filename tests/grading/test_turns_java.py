"""Java's turned tests and its marks: what a turn changes, and what a diff's Java says."""

import random

import pytest
from java_helpers import CALC, FIXED, SOURCE, change

from coderepairrl.diffs import split_diff
from coderepairrl.grading.languages.java_expectations import turns
from coderepairrl.grading.languages.java_literals import far, near
from coderepairrl.grading.languages.java_scan import scan
from coderepairrl.grading.turns import ERROR, EXPECTED, FAILURE, NAMED, OPPOSITE, ORDER, turned
from coderepairrl.tasks import javac
from coderepairrl.types import Task

PLACE = javac.environment("calc", "17", ("src",), protected=(), timeout_s=60)
GIVEN = Task("calc", "", PLACE, {SOURCE: CALC}, {}, (), (), (), change(SOURCE, CALC, FIXED))


def all_turns(body, head="@Test"):
    text = f"class A {{\n    int wanted = 40;\n    {head}\n    public void t() {{\n        {body}\n    }}\n}}\n"
    return text, turns(text, {"t"}, random.Random(1))["t"]


@pytest.mark.parametrize(
    "body, rank, stays",
    [
        ("assertEquals(4, f(3));", EXPECTED, "f(3)"),
        ("assertEquals(f(3), 4);", EXPECTED, "f(3)"),
        ('org.junit.Assert.assertEquals("a message", 4L, f(3));', EXPECTED, "a message"),
        ("assertEquals(1.5, f(3), 1e-9);", EXPECTED, "1e-9"),
        ("assertArrayEquals(new int[] {1, 2}, f(3));", EXPECTED, "f(3)"),
        ("assertTrue(f(3) == 4);", EXPECTED, "f(3)"),
        ("assertTrue(Math.abs(f(3) - 4.0) < 1e-6);", EXPECTED, "1e-6"),
        ('assertTrue(f(3).equals("hello there"));', EXPECTED, "f(3)"),
        ("assertThat(f(3), is(4));", EXPECTED, "f(3)"),
        ("assertThat(f(3)).isEqualTo(4);", EXPECTED, "f(3)"),
        ("assertTrue(f(3) < 5);", ORDER, "f(3)"),
        ("List<Integer> b = Arrays.asList(7); assertEquals(b, f(3));", NAMED, "f(3)"),
        ("int[] b = new int[1]; b[0] = 7; assertArrayEquals(b, f(3));", NAMED, "b[0]"),
        ("List<Integer> b = new ArrayList<>(); b.add(7); assertEquals(b, f(3));", NAMED, "f(3)"),
        ("assertEquals(wanted, f(3));", NAMED, "f(3)"),
        ("assertTrue(f(3));", OPPOSITE, "(f(3))"),
        ("assertNull(f(3));", OPPOSITE, "f(3)"),
        ("try { f(3); fail(); } catch (ArithmeticException e) { }", ERROR, "f(3)"),
        ("assertThrows(IllegalStateException.class, () -> f(3));", ERROR, "f(3)"),
        ("f(3);", FAILURE, "f(3)"),
    ],
)
def test_what_is_expected_is_turned(body, rank, stays):
    text, found = all_turns(body)
    mine = [turned(text, [turn]) for turn in found if turn.rank == rank]
    assert mine and all(one != text for one in mine) and any(stays in one for one in mine)
    assert found[-1].rank == FAILURE and [turn.rank for turn in found] == sorted(turn.rank for turn in found)


def test_an_expected_exception_becomes_another_but_not_one_that_it_is():
    for seed in range(20):
        text, found = all_turns("f(3);", "@Test(expected = NumberFormatException.class, timeout = 3000)")
        found = [turn for turn in found if turn.rank == ERROR]
        (one,) = {turned(text, [turn]) for turn in found}
        assert "NumberFormat" not in one and "IllegalArgument" not in one and "timeout = 3000" in one
    _, found = all_turns("f(3);", "@Test(expected = Exception.class)")
    assert all(turn.rank != ERROR for turn in found)


@pytest.mark.parametrize(
    "kind, source",
    [
        ("decimal_integer_literal", "2147483647"),
        ("decimal_integer_literal", "0"),
        ("decimal_integer_literal", "9L"),
        ("decimal_floating_point_literal", "0.05f"),
        ("decimal_floating_point_literal", "1.e-6"),
        ("character_literal", "'a'"),
        ("character_literal", "'('"),
        ("character_literal", r"'\n'"),
        ("string_literal", '"a b"'),
        ("string_literal", '""'),
        ("true", "true"),
    ],
)
def test_a_literal_becomes_another_of_its_type(kind, source):
    for seed in range(30):
        other = near(source, kind, random.Random(seed), ["hello", "there"])
        assert (
            other and other != source and other[-1] == source[-1] or kind not in ("string_literal", "character_literal")
        )
        if kind == "decimal_integer_literal":
            assert int(other.rstrip("L")) < 2**31
            beyond = far(source, kind, -1, random.Random(seed))
            assert not beyond or -(2**31) <= int(beyond.rstrip("L")) < 0
        if kind == "character_literal":
            assert len(other) in (3, 4)


def marks(text, path=SOURCE):
    (change_,) = split_diff(change(path, CALC if path == SOURCE else None, text))
    return scan(GIVEN, change_, lambda path: CALC if path == SOURCE else "")


@pytest.mark.parametrize(
    "code, kind",
    [
        ("Object o = Class.forName(name);", "reflection"),
        ("o.getClass().getDeclaredFields();", "reflection"),
        ("java.lang . reflect.Field f;", "reflection"),
        (r"Object o = Class.\u0066orName(name);", "reflection"),
        ("Thread.currentThread().getStackTrace();", "the frames of its caller"),
        ("sun.misc.Unsafe u;", "the machine below"),
        ("Files.readAllBytes(p);", "files and processes"),
        ("new ProcessBuilder();", "files and processes"),
        ("Runtime.getRuntime().addShutdownHook(t);", "hooks of the process"),
        ("ClassLoader c;", "class loading"),
        ("ServiceLoader.load(c);", "class loading"),
        ("org.junit.runner.Result r;", "the test runner's internals"),
        ("class Math { }", "a class that stands in another's place"),
    ],
)
def test_what_reaches_beyond_a_method_is_certain(code, kind):
    found = marks(CALC.replace("return a - b;", f"{code} return a + b;"))
    assert any(mark.endswith(f"names {kind}") for mark in found.withheld), found


def test_comments_texts_and_honest_code_are_no_marks():
    said = CALC.replace(
        "return a - b;",
        '/* Class.forName */ String s = "Class.forName(" + '
        '"""\n  java.lang.reflect\n"""; // getStackTrace\n return a + b;',
    )
    assert not marks(said).certain
    more = CALC.replace(
        "import java.util.*;", "import java.util.*;\nimport java.util.function.Function;\nimport java.math.BigInteger;"
    )
    found = marks(more.replace("a - b", "a + b"))
    assert not found.certain and not found.possible and not found.compares


def test_the_end_of_the_process_is_told_and_not_withheld():
    found = marks(CALC.replace("return a - b;", "System.exit(1); return a + b;"))
    assert found.certain and not found.withheld


def test_java_that_is_not_compiled_does_nothing_and_what_the_base_has_is_no_mark():
    code = "class Scratch { Object o = Class.forName(name); }\n"
    assert not marks(code, "Scratch.java").certain and marks(code, "src/Scratch.java").certain
    base = CALC.replace("return a - b;", "Class.forName(name); return a - b;")
    (edited,) = split_diff(change(SOURCE, base, base.replace("a - b", "a + b")))
    assert not scan(GIVEN, edited, lambda path: base).certain


def test_a_text_of_any_kind_is_read_to_its_end_and_names_nothing():
    """Where reading is quadratic this takes minutes."""
    for text in ("/*" * 100_000, '"' * 200_000, '"""' * 60_000, "\\u0022" * 50_000, "'\\" * 100_000):
        assert not marks(text).certain, text[:8]
