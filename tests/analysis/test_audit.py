"""A small run made by hand is clean; every way of cooking its books is found, also with the ledger's chain made
anew."""

import pytest
from audit_helpers import (
    SECOND,
    audit,
    conclude,
    configure,
    make_old_run,
    make_run,
    new_file,
    rewrite,
    row_of,
    unproven,
    violations,
    with_versions,
)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def old_run(tmp_path):
    return make_old_run(tmp_path / "old")


def test_a_run_whose_books_are_right_is_clean(run):
    code, lines, _ = audit(run)
    assert (code, lines) == (0, [f"{run}: clean; 7 groups, each with one end, every sampled token accounted for"])


def test_so_is_one_made_before_runs_were_asynchronous(old_run):
    code, lines, _ = audit(old_run)
    assert (code, lines) == (0, [f"{old_run}: clean; 3 groups, each with one end, every sampled token accounted for"])


def test_an_episode_that_was_too_old_and_masked_is_clean(run):
    configure(run, max_staleness=0, max_refills=1)
    new_file(run, lambda ts: [*with_versions(ts[:1], 2, 2), *ts[1:]], SECOND)
    rewrite(run, lambda rows: row_of(rows, "trained", "a2-p1").update(trained=5, masked={"stale": 5}))
    (run / "summary.json").unlink()
    conclude(run, [20, 5])
    assert violations(run) == []


def test_an_episode_under_weights_that_failed_their_probe_and_masked_is_clean(run):
    """The first of a2-p1's two episodes has such tokens, the other has none."""
    unproven(run, 2)
    new_file(run, lambda ts: [ts[0], *with_versions(ts[1:2], 0, 0), *ts[2:]], SECOND)
    rewrite(run, lambda rows: row_of(rows, "trained", "a2-p1").update(trained=5, masked={"unproven": 5}))
    (run / "summary.json").unlink()
    conclude(run, [20, 5])
    assert violations(run) == []


def test_a_file_that_was_booked_again_after_a_kill_is_the_last_one(run):
    """Killed after the rows that say where the groups are, before the file got its name: the next attempt books and
    writes it again."""

    def twice(rows):
        place = rows.index(row_of(rows, "stored", "a2-p1"))
        return [*rows[:place], dict(rows[place], sha256="0" * 64), *rows[place:]]

    rewrite(run, twice)
    assert violations(run) == []


def test_groups_of_a_killed_attempt_need_no_end_in_old_runs(old_run):
    """They ran again under other names; the file of their step is the later attempt's."""

    def killed(rows):
        return [
            {"event": "admitted", "group": "a0-s0-0", "task": "task-0", "split": "train", "version": 0, "episodes": 2},
            *rows,
        ]

    rewrite(old_run, killed)
    assert audit(old_run)[0] == 0


def test_without_a_run_folder_the_usage_is_shown(tmp_path):
    assert "python analysis/audit.py" in audit(tmp_path / "nowhere")[2]
