"""Books that were tampered with: every way is found, and named."""

from dataclasses import replace

import pytest
from audit_helpers import (
    EVALUATION,
    SECOND,
    STEP,
    audit,
    configure,
    make_old_run,
    make_run,
    new_file,
    rewrite,
    row_of,
    set_json,
    trajectory,
    unproven,
    versions,
    violations,
    with_call,
    with_versions,
    without,
)

from coderepairrl.rollout import trajectory_files


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def old_run(tmp_path):
    return make_old_run(tmp_path / "old")


# what is done to a run, as functions of the run alone


def on(function, *arguments, **values):
    return lambda run: function(run, *arguments, **values)


def booked(event, group, **values):
    """The ledger's row with other values, chain made anew."""
    return on(rewrite, lambda rows: row_of(rows, event, group).update(values))


def both(*changes):
    return lambda run: [change(run) for change in changes]


TRAINED_EVALUATION = {"event": "trained", "group": "a1-eval_before-0", "step": 0, "trained": 10, "masked": {}}
TAMPERINGS = {  # name -> (what is done, what the audit says)
    "a number in a row": (
        on(rewrite, lambda rows: row_of(rows, "finished", "a1-p0").update(sampled=11), chained=False),
        "does not follow",
    ),
    "a number in a row, chain made anew": (
        booked("finished", "a1-p0", sampled=11),
        "11 tokens sampled, 10 accounted for",
    ),
    "sampled and trained alike, chain made anew": (
        both(booked("finished", "a1-p0", sampled=11), booked("trained", "a1-p0", trained=11)),
        "10 sampled tokens in the file, 11 in the ledger",
    ),
    "a row less": (on(rewrite, lambda rows: rows[:3] + rows[4:], chained=False), "does not follow"),
    "an end less, chain made anew": (on(rewrite, lambda rows: rows[:-1]), "0 ends instead of one"),
    "the end of a lost group less, chain made anew": (
        on(rewrite, lambda rows: without(rows, "dropped", "a1-p1")),
        "a1-p1: 0 ends instead of one",
    ),
    "an admission less, chain made anew": (
        on(rewrite, lambda rows: without(rows, "admitted", "a2-p4")),
        "admitted 0 times",
    ),
    "a whole group less, chain made anew": (
        on(rewrite, lambda rows: [r for r in rows if r["group"] != "a1-p0"]),
        "summary.json: 30 tokens trained, the ledger has 20",
    ),
    "a grading less, chain made anew": (
        on(rewrite, lambda rows: without(rows, "graded", "a2-p4")),
        "not finished and graded once",
    ),
    "a second end, chain made anew": (
        on(rewrite, lambda rows: [*rows, row_of(rows, "trained", "a1-p0")]),
        "2 ends instead of one",
    ),
    "evaluation that was trained as well": (on(rewrite, lambda rows: [*rows, TRAINED_EVALUATION]), "2 ends"),
    "evaluation that was trained instead": (
        on(rewrite, lambda rows: [*without(rows, "dropped", "a1-eval_before-0"), TRAINED_EVALUATION]),
        "held-out tasks were trained",
    ),
    "held-out tasks under another name": (
        on(new_file, lambda ts: [replace(t, split="train") for t in ts], EVALUATION),
        "split is not the ledger's",
    ),
    "outcomes, chain made anew": (booked("finished", "a1-p0", outcomes=["submitted", "turn_limit"]), "outcomes differ"),
    "a file that is no Parquet": (
        lambda run: (run / "rollouts" / STEP).write_text("not at all"),
        "its sha256 is not the ledger's",
    ),
    "rewards, chain made anew": (
        booked("graded", "a1-p0", rewards=[1.0, 1.0]),
        "rewards differ between file and ledger",
    ),
    "episodes, chain made anew": (booked("admitted", "a1-p0", episodes=3), "2 episodes of 3"),
    "a file rewritten": (
        lambda run: trajectory_files.write(
            run / "rollouts" / STEP, trajectory_files.read(run / "rollouts" / STEP)[0], {"seconds": 2.0}
        ),
        "its sha256 is not the ledger's",
    ),
    "a file gone": (lambda run: (run / "rollouts" / STEP).unlink(), "files of the ledger that are gone"),
    "a file nobody booked": (
        lambda run: trajectory_files.write(run / "rollouts" / "step_00002.parquet", [trajectory("a1-p9", 0)], {}),
        "no ledger row speaks of it",
    ),
    "a reward in the file, booked": (
        on(new_file, lambda ts: [replace(ts[0], reward=0.5), *ts[1:]]),
        "rewards differ between file and ledger",
    ),
    "an episode less in the file, booked": (on(new_file, lambda ts: ts[1:]), "1 episodes of 2"),
    "a group less in the file, booked": (
        on(new_file, lambda ts: [t for t in ts if t.group_id != "a1-p3"]),
        "a1-p3: in no Parquet file",
    ),
    "a logprob less in the file, booked": (
        on(new_file, lambda ts: with_call(ts, 0, logprobs=(-0.1,))),
        "lengths differ",
    ),
    "a prompt that is not its parent's": (
        on(new_file, lambda ts: with_call(ts, 1, prompt_ids=(1, 2, 3, 10, 99, 12, 4))),
        "does not start with its parent's tokens",
    ),
    "the summary's trained tokens": (
        lambda run: set_json(run / "summary.json", lambda s: s.update(tokens_trained=31)),
        "summary.json: 31 tokens trained",
    ),
    "the summary's sampled tokens": (
        lambda run: set_json(run / "summary.json", lambda s: s.update(tokens_sampled=61)),
        "summary.json: 61 tokens sampled",
    ),
    "the summary's masked tokens": (
        lambda run: set_json(run / "summary.json", lambda s: s["tokens_masked"].update(zero_variance=9)),
        "60 tokens sampled, 59 accounted for",
    ),
    "the metrics": (
        lambda run: (run / "metrics.jsonl").write_text(
            (run / "metrics.jsonl").read_text().replace('"tokens_trained": 10', '"tokens_trained": 12')
        ),
        "12 tokens trained in metrics.jsonl",
    ),
    "a step less in the metrics": (lambda run: (run / "metrics.jsonl").write_text(""), "step 0: None tokens trained"),
    "no ledger": (lambda run: (run / "ledger.jsonl").unlink(), "empty or missing"),
    # staleness: two groups of the second step, of which one began under the first weights
    "a smaller bound": (
        on(configure, max_staleness=0, max_refills=1),
        "a2-p1: 10 tokens trained and 0 masked as stale, 10 are of episodes staler than 0",
    ),
    "no configuration: on-policy": (lambda run: (run / "config.yaml").unlink(), "a2-p1: 10 tokens trained"),
    "one of a group's episodes is too old": (
        both(
            on(configure, max_staleness=0, max_refills=1),
            on(new_file, lambda ts: [*with_versions(ts[:1], 2, 2), *ts[1:]], SECOND),
            booked("trained", "a2-p1", trained=6, masked={"stale": 4}),
        ),
        "6 tokens trained and 4 masked as stale, 5 are of episodes staler than 0",
    ),
    "masked as stale what is not": (
        booked("trained", "a2-p1", trained=5, masked={"stale": 5}),
        "5 masked as stale, 0 are",
    ),
    "a token that no published weights sampled": (
        on(new_file, lambda ts: with_versions(ts, 0, 4), SECOND),
        "versions [4] are not in versions.jsonl",
    ),
    "a token from after its training": (
        on(new_file, lambda ts: with_versions(ts, 0, 1)),
        "a1-p0: a token of another policy version",
    ),
    "a token from before its group's admission": (
        booked("admitted", "a2-p1", version=2),
        "a2-p1: a token of another policy version",
    ),
    "evaluation under two policies": (
        on(new_file, lambda ts: with_versions(ts, 0, 1), EVALUATION),
        "a1-eval_before-0: a token of another policy version",
    ),
    "versions.jsonl gone": (
        lambda run: (run / "policy" / "versions.jsonl").unlink(),
        "versions.jsonl: empty or missing",
    ),
    "a version of another step": (
        on(versions, lambda rows: rows[2].update(step=2)),
        "a2-p1: a token of another policy version",
    ),
    "a version used twice": (
        on(versions, lambda rows: [*rows, {"version": 2, "step": 2}]),
        "versions.jsonl: version 2 is of two steps",
    ),
    "a version out of order": (on(versions, lambda rows: [*rows, {"version": 1, "step": 1}]), "version 1 after 3"),
    "a token under weights that failed their probe": (
        on(unproven, 2),
        "a2-p1: 10 tokens trained and 0 masked as unproven, 10 are of episodes under weights",
    ),
    "masked as unproven what is not": (
        booked("trained", "a2-p1", trained=5, masked={"unproven": 5}),
        "5 masked as unproven, 0 are",
    ),
    "evaluated under weights that failed their probe": (
        on(unproven, 0),
        "a1-eval_before-0: evaluated under weights that failed their probe",
    ),
    # the data order
    "a position used twice": (booked("admitted", "a2-p4", position=3), "used not once but [2] times: [3]"),
    "a position that is not run again": (booked("admitted", "a2-p1", position=5), "used not once but [0] times: [1]"),
    "a group that overtook another": (
        on(rewrite, lambda rows: [row_of(rows, "admitted", "a2-p1"), *without(rows, "admitted", "a2-p1")]),
        "a step holds a group that was admitted after one of a later step",
    ),
    "a group in another step": (booked("stored", "a2-p1", step=0), "steps left out, or of different numbers of groups"),
    "trained at another step": (booked("trained", "a2-p1", step=2), "a2-p1: trained at step 2, stored in step 1"),
    # what was dropped
    "replaced although its rewards differ": (
        booked("graded", "a1-p2", rewards=[0.0, 1.0]),
        "a1-p2: dropped for its equal rewards",
    ),
    "more replaced than allowed": (
        on(configure, max_staleness=1, max_refills=0),
        "step 0: 1 groups replaced, 0 allowed",
    ),
    "tokens of a replaced group": (booked("dropped", "a1-p2", tokens=9), "a1-p2: 10 tokens sampled, 9 accounted for"),
    "tokens of a lost group": (booked("dropped", "a1-p1", tokens=9), "a1-p1: 0 tokens sampled, 9 accounted for"),
    "a lost group in a file": (
        on(new_file, lambda ts: [*ts, trajectory("a1-p1", 0)]),
        "a1-p1: dropped because its attempt ended, and yet in a file",
    ),
    "a replaced group in a file": (
        on(new_file, lambda ts: [*ts, trajectory("a1-p2", 0)]),
        "a1-p2: dropped, and yet in a file",
    ),
}
OLD_TAMPERINGS = {
    "another version in the file, booked": (
        on(new_file, lambda ts: with_call(ts, 1, policy_versions=(0, 1))),
        "a token of another policy version",
    ),
    "a group less in the file, booked": (
        on(new_file, lambda ts: [t for t in ts if t.group_id != "a1-s0-1"]),
        "a1-s0-1: in no Parquet file",
    ),
    "an end less, chain made anew": (on(rewrite, lambda rows: rows[:-1]), "0 ends instead of one"),
    "a file gone": (lambda run: (run / "rollouts" / STEP).unlink(), "files of the ledger that are gone"),
    "rewards, chain made anew": (
        booked("graded", "a1-s0-0", rewards=[1.0, 1.0]),
        "rewards differ between file and ledger",
    ),
}


@pytest.mark.parametrize(
    ("made", "name"), [*(("run", name) for name in TAMPERINGS), *(("old_run", name) for name in OLD_TAMPERINGS)]
)
def test_cooked_books_are_found(made, name, request):
    tamper, said = (TAMPERINGS if made == "run" else OLD_TAMPERINGS)[name]
    run = request.getfixturevalue(made)
    assert violations(run) == []
    tamper(run)
    found = violations(run)
    assert any(said in violation for violation in found), found


@pytest.mark.parametrize("name", ["a number in a row", "the metrics"])
def test_the_program_prints_one_line_a_violation_and_exits_with_1(run, name):
    tamper, said = TAMPERINGS[name]
    tamper(run)
    code, lines, last = audit(run)
    assert code == 1 and any(said in line for line in lines) and last == f"{run}: {len(lines)} violations"
