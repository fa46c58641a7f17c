"""What a report says: JUnit XML from untrusted code, the names of one test, logs through swebench's parsers, and how
statuses are counted."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_helpers import FIX, LOG_TASK, RIGHT, UNITTEST, WRONG, change, judge

from coderepairrl.grading import counting, log_parsers
from coderepairrl.grading.ids import Statuses, function_of, to_junit, to_node
from coderepairrl.grading.judge import Run
from coderepairrl.grading.junit import ORDER, ReportError, cases, parse, read_reports
from coderepairrl.types import VerdictKind

# ---- reports


def test_the_worst_status_of_a_test_counts(tmp_path):
    one = (
        '<testsuite><testcase classname="a.B" name="c[é]"><failure/></testcase><testcase classname="a.B" name="d"/'
        '><testcase classname="a" name="e"><skipped/></testcase></testsuite>'
    )
    (tmp_path / "b.xml").write_text(one)
    (tmp_path / "a.xml").write_text(one.replace("<failure/>", ""))
    (tmp_path / "note.txt").write_text("no report")
    assert read_reports(tmp_path) == {"a.B::c[é]": "failed", "a.B::d": "passed", "a::e": "skipped"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<a>",
        b"not xml",
        b"<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>".encode("utf-16"),
        b"\xff\xfe",
    ],
)
def test_what_is_no_report_is_refused(data):
    with pytest.raises(ReportError):
        parse(data)


def test_a_case_says_how_long_it_took_and_why_it_failed_first():
    report = (
        '<testsuite><testcase classname="a" name="b" time="0.25"><system-out>loud</system-out>'
        '<failure message="m">E 1 &lt; 0\nwhere</failure><error>of the teardown</error></testcase>'
        '<testcase classname="a" name="c">text</testcase></testsuite>'
    )
    failed, passed = cases(report.encode())
    assert (failed.test, failed.status, failed.seconds, failed.detail) == ("a::b", "error", 0.25, "E 1 < 0\nwhere")
    assert (passed.test, passed.status, passed.seconds, passed.detail) == ("a::c", "passed", 0.0, "")


def test_a_time_that_is_no_number_is_no_reason_to_doubt_a_report():
    assert parse(b'<a><testcase classname="a" name="b" time="soon"/></a>') == [("a::b", "passed")]


def test_expected_failures_are_told_from_skips_in_new_and_old_reports():
    for kind in ('type="pytest.xfail" message=""', 'message="expected test failure"'):
        assert parse(f'<a><testcase classname="a" name="b"><skipped {kind}/></testcase></a>'.encode()) == [
            ("a::b", "xfailed")
        ]
    assert parse(b'<a><testcase classname="a" name="b"><skipped type="pytest.skip"/></testcase></a>') == [
        ("a::b", "skipped")
    ]


# ---- the names of one test

NAME = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)
PARAMETERS = st.none() | st.text(
    st.characters(codec="ascii", exclude_characters="\n\r\t\x0b\x0c\x1c\x1d\x1e\x1f", min_codepoint=32), max_size=12
)
NODES = st.builds(
    lambda folders, module, classes, name, parameters: (
        "/".join([*folders, f"test_{module}.py"]),
        "::".join([*(c.capitalize() for c in classes), f"test_{name}"])
        + (f"[{parameters}]" if parameters is not None else ""),
    ),
    st.lists(NAME, max_size=3),
    NAME,
    st.lists(NAME, max_size=2),
    NAME,
    PARAMETERS,
)


@given(NODES)
def test_node_ids_go_to_junit_and_back(node):
    path, rest = node
    junit = to_junit(f"{path}::{rest}")
    assert to_junit(junit) == junit and to_node(junit, [path, "test_other.py"]) == f"{path}::{rest}"
    assert (
        Statuses({junit: "passed"}).lookup(f"{path}::{rest}") == "passed"
        and to_node(junit, ["other/test_other.py"]) is None
    )
    assert function_of(junit) == rest.partition("[")[0].rpartition("::")[2]


@given(
    st.lists(
        st.tuples(NODES, st.sampled_from(("passed", "failed", "skipped", "error"))),
        min_size=1,
        max_size=6,
        unique_by=lambda pair: to_junit("::".join(pair[0])),
    ),
    st.data(),
)
def test_an_id_cut_at_white_space_has_the_worst_status_of_what_it_stands_for(pairs, data):
    found = {to_junit("::".join(node)): status for node, status in pairs}
    path, rest = data.draw(st.sampled_from([node for node, _ in pairs]))
    cut = f"{path}::{rest}".split()[0]
    same = [status for name, status in found.items() if name == to_junit(cut)] or [
        status for name, status in found.items() if name.split()[0] == to_junit(cut)
    ]
    assert Statuses(found).lookup(cut) == max(same, key=ORDER.index)


@pytest.mark.parametrize(
    "test, junit",
    [
        ("test_a (app.tests.Case)", "app.tests.Case::test_a"),
        ("test_a (app.tests.Case.test_a)", "app.tests.Case::test_a"),
        ("tests/test_a.py::test_b[x::y/z.py]", "tests.test_a::test_b[x::y/z.py]"),
        ("docs/a.rst::a.rst", "docs.a.rst::a.rst"),
        ("test_a.py::TestA::test_b[1-[2]]", "test_a.TestA::test_b[1-[2]]"),
    ],
)
def test_ids_of_all_styles(test, junit):
    assert to_junit(test) == junit and Statuses({junit: "failed"}).lookup(test) == "failed"


def test_ids_truncated_at_a_bracket_or_reduced_to_a_paths_last_part():
    found = {
        "t::test_a[log(photon cm)]": "passed",
        "t::test_a[log(x)]": "passed",
        "t::test_b[a]": "passed",
        "t::test_c[/usr/data/x.dcm]": "failed",
    }
    assert (
        Statuses(found).lookup("t.py::test_a[log(") == "passed"
        and Statuses(found).lookup("t.py::test_c[/x.dcm]") == "failed"
    )
    assert Statuses(found | {"t::test_a[log(y)]": "failed"}).lookup("t.py::test_a[log(") == "failed"
    assert Statuses(found).lookup("t.py::test_d[a") == Statuses(found).lookup("t.py::test_a") == "missing"


@pytest.mark.parametrize(
    "test, status",
    [
        ("tests/all.case::one", "failed"),
        ("tests.all.case::one", "failed"),
        ("tests/all.case::keeps", "passed"),
        ("tests/api.yaml::suite::first", "error"),
        ("tests/my", "skipped"),
        ("README.md::readme", "passed"),
        ("tests/all.case::on", "missing"),
        ("tests/all.case", "missing"),
        ("tests/all.case::one plus", "missing"),
        ("one", "missing"),
        ("tests/t.py::test_a", "missing"),
        ("t.js::adds", "missing"),
        ("renders", "missing"),
        ("tests/m", "missing"),
    ],
)
def test_an_id_without_a_bracket_may_be_cut_too(test, status):
    report = {
        "tests.all.case::one plus one": "passed",
        "tests.all.case::one more": "failed",
        "tests.all.case::keeps as is": "passed",
        "tests.api.yaml.suite::first step": "error",
        "tests.my cases.t::test_a": "skipped",
        "README.md::readme example": "passed",
        "tests.t::test_a[x y]": "passed",
        "renders two": "passed",
        "adds two": "passed",
    }
    assert Statuses(report).lookup(test) == status


# ---- logs


def test_pytests_own_log_and_report_agree(tmp_path):
    """The same run, read both ways, gives a row's ids the same statuses."""
    (tmp_path / "test_a.py").write_text("""import unittest

import pytest


@pytest.mark.parametrize("a", ["x y", "x z", "/tmp/deep/f.dcm", 1])
def test_a(a):
    assert a != "x z"


class TestB(unittest.TestCase):
    def test_b(self):
        self.fail("a - b")


@pytest.mark.xfail
def test_c():
    assert False


def test_d():
    pytest.skip("no")


@pytest.fixture
def broken():
    raise ValueError


def test_e(broken):
    pass
""")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rA",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit1",
            "--junitxml=report/r.xml",
            "test_a.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    report = Statuses(read_reports(tmp_path / "report"))
    for parser in ("parse_log_pytest", "parse_log_pydicom", "parse_log_pytest_v2"):
        log = log_parsers.parse(parser, done.stdout)
        assert len(log) >= 6
        for test, status in log.items():
            if parser == "parse_log_pytest_v2" and status == "error":
                continue  # leaves the message in the name
            assert report.lookup(test) == status, (parser, test)
    assert (
        report.lookup("test_a.py::test_a[x") == report.lookup("test_a.py::TestB::test_b") == "failed"
        and report.lookup("test_a.py::test_c") == "xfailed"
    )


def test_parsers_are_swebenchs_and_run_alone(tmp_path):
    assert len(log_parsers.names()) > 40 and "swebench.harness" not in sys.modules and "docker" not in sys.modules
    (tmp_path / "log").write_text(
        "test_a (app.tests.Case) ... ok\ntest_b (app.tests.Case) ... FAIL\ntest_c (app.tests.Case) ... skipped 'no'\n"
    )
    assert asyncio.run(log_parsers.parse_file("parse_log_django", tmp_path / "log")) == {
        "test_a (app.tests.Case)": "passed",
        "test_b (app.tests.Case)": "failed",
        "test_c (app.tests.Case)": "skipped",
    }
    assert asyncio.run(log_parsers.parse_file("no such parser", tmp_path / "log")) is None


def test_a_log_that_keeps_its_parser_busy_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(log_parsers, "PARSE_S", 0.3)
    (tmp_path / "log").write_text("_" * 200_000)
    assert asyncio.run(log_parsers.parse_file("parse_log_sympy", tmp_path / "log")) is None


@pytest.mark.parametrize("name", ["SWE-bench_dev.parquet", "SWE-bench_Lite_dev.parquet"])
def test_public_rows_are_read_as_swebench_reads_them(name):
    """Row by row: each test of a row, as its runner's log or its JUnit report names it, is found by the row's id."""
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / name
    if not path.exists():
        pytest.skip("the public rows are not on this machine")
    rows = pq.read_table(path, columns=["instance_id", "FAIL_TO_PASS", "PASS_TO_PASS", "log_parser"]).to_pylist()
    for row in rows:
        assert row["log_parser"] in log_parsers.names()
        ids = list(dict.fromkeys(json.loads(row["FAIL_TO_PASS"]) + json.loads(row["PASS_TO_PASS"])))
        log = log_parsers.parse(
            row["log_parser"], "".join(f"{'FAILED' if i % 7 == 0 else 'PASSED'} {test}\n" for i, test in enumerate(ids))
        )
        wanted = ["failed" if i % 7 == 0 else "passed" for i in range(len(ids))]
        # four rows hold absolute paths of the machine that they were made on, which their own parser cuts
        assert [log.get(test) for test in ids if "[/" not in test] == [
            status for test, status in zip(ids, wanted, strict=True) if "[/" not in test
        ], row["instance_id"]
        assert [Statuses(log).lookup(test) for test in ids] == wanted, row["instance_id"]
        whole = {
            to_junit(test + (" more]" if test.count("[") > test.count("]") else "")): "failed"
            if i % 7 == 0
            else "passed"
            for i, test in enumerate(ids)
        }
        report = Statuses(whole)
        assert len(whole) == len(ids) and all(
            report.lookup(test) == status
            for test, status in zip(ids, wanted, strict=True)
            if test.count("[") == test.count("]")
        ), row["instance_id"]
        assert all(report.lookup(test) in ("passed", "failed") for test in ids)


@pytest.mark.parametrize("canary", [True, False])
def test_verdicts_by_a_log(config, canary):
    command = tuple(argument for argument in LOG_TASK.environment.test_command if canary or argument != "{canary_path}")
    environment = replace(LOG_TASK.environment, test_command=command)
    good, bad, broken = (
        judge(config, "log", diff, environment=environment) for diff in (FIX, "", change("lib.py", WRONG, "def f(:\n"))
    )
    assert (good.kind, good.evidence, good.resolved_swebench) == (
        VerdictKind.RESOLVED,
        "log+canary" if canary else "log",
        True,
    ), good
    assert (bad.kind, bad.evidence) == (VerdictKind.UNRESOLVED, good.evidence) and set(bad.fail_to_pass.values()) == {
        "failed"
    }
    assert broken.kind == VerdictKind.UNRESOLVED and set(broken.fail_to_pass.values()) == {"missing"}


# ---- counting


def run(to_pass, to_keep, evidence="junit+canary"):
    return Run(to_pass, to_keep, evidence)


@pytest.mark.parametrize(
    "f, p, evidence, swebench, strict",
    [
        ("passed", "passed", "junit+canary", True, True),
        ("passed", "passed", "none", False, False),
        ("failed", "passed", "log", False, False),
        ("missing", "passed", "log", False, False),
        ("skipped", "passed", "log", False, False),
        ("passed", "missing", "log", False, False),
        ("passed", "error", "log", False, False),
        ("passed", "skipped", "log", True, False),
        ("xfailed", "passed", "log", True, False),
        ("passed", "xfailed", "log", True, False),
    ],
)
def test_counted_as_swebench_and_strictly(f, p, evidence, swebench, strict):
    one, gold = run({"a": f}, {"b": p}, evidence), run({"a": "passed"}, {"b": "passed"})
    assert (counting.resolved_swebench(one), counting.resolved(one, gold)) == (swebench, strict)
    assert counting.resolved(one, one) == swebench  # where the oracle does the same


def test_the_oracles_own_skips_and_expected_failures_count_and_others_disagree(config):
    tests = UNITTEST.replace("    def test_keep(self):\n", "    def test_keep(self):\n        g(0)\n")
    skipping = RIGHT.replace("    return a\n", "    import unittest\n    raise unittest.SkipTest\n")
    honest, skips = (
        judge(config, "xmlrunner", change("lib.py", WRONG, text), hidden_tests={"test_hidden.py": tests})
        for text in (RIGHT, skipping)
    )
    assert honest.resolved and honest.pass_to_pass["test_hidden.Hidden::test_skipped"] == "skipped"
    assert (
        not skips.resolved
        and skips.resolved_swebench
        and skips.pass_to_pass["test_hidden.Hidden::test_keep"] == "skipped"
    )
    assert counting.disagreement(honest) is None and "test_keep skipped" in counting.disagreement(skips)
