"""Trajectories on disk read back equal, with and without this project; nobody can change the ledger unseen."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.errors import TaskError
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.types import Call, Outcome, Trajectory, Verdict

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)  # all but lone surrogates, NUL and emoji included
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
INT = st.integers(0, 2**31 - 1)
STATUSES = st.dictionaries(TEXT, st.sampled_from(["passed", "failed", "missing"]), max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def calls(draw):
    count = draw(st.integers(0, 4))
    ids, one = st.lists(INT, max_size=6).map(tuple), draw(st.integers(0, 5))
    same = [draw(st.lists(values, min_size=one, max_size=one).map(tuple)) for values in (INT, FLOAT, INT)]
    return tuple(
        Call(
            i,
            None if i == 0 else draw(st.integers(0, i - 1)),
            None if i == 0 else draw(st.sampled_from(["completion", "prompt"])),
            draw(ids),
            *same,
            draw(st.sampled_from(["stop", "length"])),
            draw(st.booleans()),
            draw(FLOAT),
            draw(FLOAT),
        )
        for i in range(count)
    )


VERDICTS = st.none() | st.builds(
    Verdict, st.booleans(), TEXT, STATUSES, STATUSES, st.lists(TEXT, max_size=2).map(tuple), TEXT, FLOAT
)
TRAJECTORIES = st.builds(
    Trajectory,
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from(["train", "heldout"]),
    st.integers(0, 5),
    calls(),
    TEXT,
    st.sampled_from(Outcome),
    TEXT,
    VERDICTS,
    st.dictionaries(TEXT, FLOAT, max_size=3),
    FLOAT,
    FLOAT,
    st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=3).map(tuple),
    st.dictionaries(TEXT, FLOAT, max_size=3),
)
EXAMPLE = Trajectory(
    "g-0",
    "g",
    "task-ä",
    "train",
    0,
    (Call(0, None, None, (1, 2), (3, 4), (-0.1, -0.25), (7, 7), "stop", False, 0.0, 0.5),),
    "--- a\n+++ b\n",
    Outcome.SUBMITTED,
    "",
    Verdict(True, "junit+canary", {"a::b": "passed"}, {}, ("test_x.py",), "", 1.5),
    {"tests": 1.0},
    1.0,
    2.0,
    ({"kind": "call"},),
    {"generation_s": 0.5},
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TRAJECTORIES, max_size=3), st.dictionaries(TEXT, JSON, max_size=2))
def test_what_is_written_reads_back_equal(tmp_path_factory, trajectories, stats):
    path = tmp_path_factory.mktemp("store") / "step.parquet"
    digest = trajectory_files.write(path, trajectories, stats)
    assert trajectory_files.read(path) == (trajectories, stats)
    assert digest == trajectory_files.sha256(path)
    assert [p.name for p in path.parent.iterdir()] == ["step.parquet"]


def test_without_a_verdict_there_is_none(tmp_path):
    trajectory_files.write(tmp_path / "x.parquet", [replace(EXAMPLE, verdict=None)], {})
    assert trajectory_files.read(tmp_path / "x.parquet")[0][0].verdict is None


def test_the_same_trajectories_give_the_same_bytes(tmp_path):
    assert trajectory_files.write(tmp_path / "a.parquet", [EXAMPLE], {"s": 1}) == trajectory_files.write(
        tmp_path / "b.parquet", [EXAMPLE], {"s": 1}
    )


def test_others_read_it_without_this_project(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets
    import pandas

    trajectory_files.write(
        tmp_path / "x.parquet", [EXAMPLE, replace(EXAMPLE, trajectory_id="g-1", calls=(), verdict=None)], {}
    )
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert (
        rows["trajectory_id"][:] == ["g-0", "g-1"]
        and rows[0]["calls"][0]["completion_ids"] == [3, 4]
        and json.loads(rows[0]["verdict"])["resolved"] is True
    )
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    assert (
        frame["task_id"][0] == "task-ä"
        and list(frame["calls"][0][0]["logprobs"]) == [-0.1, -0.25]
        and frame["outcome"][1] == "submitted"
    )


@pytest.mark.parametrize("version", ["2", None])
def test_another_schema_version_is_refused(tmp_path, version):
    path = tmp_path / "x.parquet"
    trajectory_files.write(path, [EXAMPLE], {})
    metadata = {"stats": "{}"} | ({"schema_version": version} if version else {})
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(TaskError, match=f"schema version {version} instead of {trajectory_files.SCHEMA_VERSION}"):
        trajectory_files.read(path)


@pytest.fixture
def book(tmp_path):
    """A closed ledger of eight rows."""
    path = tmp_path / "ledger.jsonl"
    work = Ledger(path)
    for i in range(4):
        work.write("admitted", f"a1-s0-{i}", task=f"größe-{i}", episodes=2, version=0)
        work.write("trained", f"a1-s0-{i}", step=0, trained=i, masked={"zero_variance": 0.5})
    work.close()
    return path


def test_an_untouched_ledger_holds(book):
    rows = list(ledger.rows(book))
    assert len(rows) == 8 and ledger.broken_link(rows) is None and ledger.broken_link([]) is None


@pytest.mark.parametrize("number", range(8))
def test_a_changed_row_is_found_where_it_is(book, number):
    for key in list(ledger.rows(book))[number]:
        rows = list(ledger.rows(book))
        rows[number][key] = "changed"
        assert ledger.broken_link(rows) == number + 1, key
    rows = list(ledger.rows(book))
    rows[number]["extra"] = 1
    assert ledger.broken_link(rows) == number + 1


@pytest.mark.parametrize("number", range(7))
def test_a_removed_row_is_found(book, number):
    """Not the last: a chain cannot know what was to follow; the audit misses that group's end."""
    rows = list(ledger.rows(book))
    del rows[number]
    assert ledger.broken_link(rows) == number + 1


@pytest.mark.parametrize("number", range(8))
def test_an_inserted_repeated_or_swapped_row_is_found(book, number):
    rows = list(ledger.rows(book))
    assert (
        ledger.broken_link(
            rows[:number] + [{"event": "dropped", "group": "x", "hash": rows[number]["hash"]}] + rows[number:]
        )
        == number + 1
    )
    assert ledger.broken_link(rows[: number + 1] + [rows[number]] + rows[number + 1 :]) == number + 2
    if number < 7:
        assert ledger.broken_link(rows[:number] + [rows[number + 1], rows[number]] + rows[number + 2 :]) == number + 1
    assert (
        ledger.broken_link([{k: v for k, v in row.items() if k != "hash" or i != number} for i, row in enumerate(rows)])
        == number + 1
    )


@pytest.mark.parametrize("torn", [b"{", b'{"event": "tra', b'{"event": "trained", "group": "g", "hash": "0"}', b"\xc3"])
def test_a_torn_last_line_is_dropped_and_the_chain_goes_on(book, torn):
    whole = book.read_bytes()
    book.write_bytes(whole + torn)
    work = Ledger(book)
    work.write("dropped", "g", reason="evaluation", tokens=1)
    work.close()
    assert book.read_bytes().startswith(whole)
    rows = list(ledger.rows(book))
    assert len(rows) == 9 and ledger.broken_link(rows) is None


def test_a_reader_does_not_see_a_row_that_is_being_written(book):
    before = list(ledger.rows(book))
    with book.open("a") as file:
        file.write('{"event": "tra')
    assert list(ledger.rows(book)) == before


def test_a_ledger_that_is_nothing_but_a_torn_line_starts_anew(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"event"')
    work = Ledger(tmp_path / "ledger.jsonl")
    work.write("admitted", "g")
    work.close()
    assert [row["event"] for row in ledger.rows(tmp_path / "ledger.jsonl")] == ["admitted"]


def test_reopening_changes_nothing_and_continues(book):
    before = book.read_bytes()
    for _ in range(3):
        Ledger(book).close()
    assert book.read_bytes() == before
    for i in range(3):
        work = Ledger(book)
        work.write("dropped", f"g{i}")
        work.close()
    assert ledger.broken_link(list(ledger.rows(book))) is None


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    work = Ledger(tmp_path / "ledger.jsonl")
    work.write("admitted", "g")
    assert len(list(ledger.rows(tmp_path / "ledger.jsonl"))) == 1  # before close: a killed process loses nothing
    work.close()
