"""A small run made by hand is clean; every way of cooking its books is found, also with the ledger's chain made
anew."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.run.summary import write_summary
from coderepairrl.types import Call, Outcome, Trajectory, Verdict

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = importlib.util.spec_from_file_location("audit", ROOT / "analysis" / "audit.py")
MODULE = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(MODULE)
violations = MODULE.audit
STEP, SECOND, EVALUATION = "step_00000.parquet", "step_00001.parquet", "eval_before.parquet"


def trajectory(group, number, split="train", reward=0.0, versions=(0, 0)):
    """Two calls, the second a continuation of the first; 5 sampled tokens."""
    first = Call(
        0, None, None, (1, 2, 3), (10, 11, 12), (-0.1, -0.2, -0.3), (versions[0],) * 3, "stop", False, 0.0, 0.1
    )
    second = Call(
        1,
        0,
        "completion",
        (1, 2, 3, 10, 11, 12, 4),
        (13, 14),
        (-0.4, -0.5),
        (versions[1],) * 2,
        "stop",
        False,
        0.2,
        0.1,
    )
    verdict = Verdict(bool(reward), "junit+canary", {"t::a": "passed" if reward else "failed"}, {}, (), "", 0.1)
    return Trajectory(
        f"{group}-{number}",
        group,
        f"task-{group[-1]}",
        split,
        0,
        (first, second),
        "",
        Outcome.SUBMITTED,
        "",
        verdict,
        {"tests": reward},
        reward,
        1.0,
    )


def sampled(members):
    return sum(len(call.completion_ids) for t in members for call in t.calls)


def finish(work, group, members, **graded):
    work.write("finished", group, outcomes=["submitted"] * 2, sampled=sampled(members))
    work.write("graded", group, rewards=[t.reward for t in members], **graded)


def conclude(run, trained):
    """Metrics of steps with so many trained tokens, and the summary."""
    seconds = dict.fromkeys(("rollout_s", "train_s", "update_s", "step_s"), 1.0)
    lines = [
        json.dumps({"step": step, "tokens_trained": tokens, "failed_updates": 0, "logprob_gap": 1e-6} | seconds)
        for step, tokens in enumerate(trained)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return write_summary(run)


def configure(run, **rollout):
    (run / "config.yaml").write_text(yaml.safe_dump({"rollout": rollout}))


@pytest.fixture
def old_run(tmp_path):
    """As runs were before they were asynchronous: one evaluation group, then one step of two groups; the second of them
    has no variance and is masked."""
    run = tmp_path / "old"
    work = Ledger(run / "ledger.jsonl")
    groups = {EVALUATION: ["a1-eval_before-0"], STEP: ["a1-s0-0", "a1-s0-1"]}
    for file, names in groups.items():
        split = "heldout" if file == EVALUATION else "train"
        members = {
            group: [trajectory(group, i, split, float(i == 0 and group != "a1-s0-1")) for i in range(2)]
            for group in names
        }
        for group in names:
            work.write("admitted", group, task=f"task-{group[-1]}", split=split, version=0, episodes=2)
        digest = trajectory_files.write(
            run / "rollouts" / file, [t for ts in members.values() for t in ts], {"seconds": 1.0}
        )
        for group in names:
            finish(work, group, members[group], file=file, sha256=digest)
        for group in names if split == "heldout" else ():
            work.write("dropped", group, reason="evaluation", tokens=sampled(members[group]))
    work.write("trained", "a1-s0-0", step=0, trained=10, masked={})
    work.write("trained", "a1-s0-1", step=0, trained=0, masked={"zero_variance": 10})
    work.close()
    conclude(run, [10])
    return run


@pytest.fixture
def run(tmp_path):
    """Asynchronous, two steps of two groups. a1-p1 was lost with its attempt and ran again, a1-p2 had no variance and
    was replaced, a2-p4 has none
    either and is masked, a2-p1 went on under new weights. Versions 1 and 2 are both of one update: the first attempt's
    was lost, too."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "versions.jsonl").write_text(
        "".join(json.dumps({"version": v, "step": s}) + "\n" for v, s in ((0, 0), (1, 1), (2, 1), (3, 2)))
    )
    configure(tmp_path, max_staleness=1, max_refills=1)
    work = Ledger(tmp_path / "ledger.jsonl")
    admit = lambda group, position, version: work.write(
        "admitted", group, task="task", split="train", position=position, version=version, episodes=2
    )
    members = {
        group: [trajectory(group, i, "train", float(i == 0 and group != "a2-p4"), versions) for i in range(2)]
        for group, versions in (("a1-p0", (0, 0)), ("a1-p3", (0, 0)), ("a2-p1", (0, 2)), ("a2-p4", (2, 2)))
    }
    held_out = [trajectory("a1-eval_before-0", i, "heldout", float(i == 0)) for i in range(2)]
    work.write("admitted", "a1-eval_before-0", task="task", split="heldout", version=0, episodes=2)
    finish(work, "a1-eval_before-0", held_out)
    work.write(
        "stored",
        "a1-eval_before-0",
        file=EVALUATION,
        sha256=trajectory_files.write(tmp_path / "rollouts" / EVALUATION, held_out, {"seconds": 1.0}),
    )
    work.write("dropped", "a1-eval_before-0", reason="evaluation", tokens=10)
    for position in range(4):
        admit(f"a1-p{position}", position, 0)
    finish(work, "a1-p2", [trajectory("a1-p2", i) for i in range(2)])
    work.write("dropped", "a1-p2", reason="zero_variance", tokens=10, step=0)
    for group in ("a1-p3", "a1-p0"):
        finish(work, group, members[group])
    work.write("dropped", "a1-p1", reason="attempt_ended", tokens=0)
    admit("a2-p1", 1, 0)
    admit("a2-p4", 4, 2)
    for group in ("a2-p4", "a2-p1"):
        finish(work, group, members[group])
    for step, names in enumerate((("a1-p0", "a1-p3"), ("a2-p1", "a2-p4"))):
        path = tmp_path / "rollouts" / f"step_{step:05d}.parquet"
        digest = trajectory_files.write(path, [t for group in names for t in members[group]], {"seconds": 1.0})
        for group in names:
            work.write("stored", group, step=step, file=path.name, sha256=digest)
    work.write("trained", "a1-p0", step=0, version=2, trained=10, masked={})
    work.write("trained", "a1-p3", step=0, version=2, trained=10, masked={})
    work.write("trained", "a2-p1", step=1, version=3, trained=10, masked={})
    work.write("trained", "a2-p4", step=1, version=3, trained=0, masked={"zero_variance": 10})
    work.close()
    summary = conclude(tmp_path, [20, 10])
    assert (summary["tokens_sampled"], summary["tokens_trained"]) == (60, 30)
    assert summary["tokens_masked"] == {"zero_variance": 10}
    assert summary["tokens_dropped"] == {
        "evaluation": 10,
        "infrastructure_error": 0,
        "zero_variance": 10,
        "attempt_ended": 0,
    }
    return tmp_path


def audit(run):
    """(exit code, printed lines, last line on stderr) of the program."""
    done = subprocess.run([sys.executable, "analysis/audit.py", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.strip()


def rewrite(run, change, chained=True):
    """The ledger's rows through `change`; chained: with hashes that fit again, as a clever forger would."""
    rows = [dict(row) for row in ledger.rows(run / "ledger.jsonl")]
    rows = change(rows) or rows
    path = run / "ledger.jsonl"
    if chained:
        path.unlink()
        work = Ledger(path)
        for row in rows:
            work.write(**{key: value for key, value in row.items() if key != "hash"})
        work.close()
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row_of(rows, event, group):
    return next(row for row in rows if row["event"] == event and row["group"] == group)


def new_file(run, change, file=STEP):
    """Trajectories through `change`, with the file's new sha256 booked in a ledger whose chain fits."""
    trajectories, stats = trajectory_files.read(run / "rollouts" / file)
    digest = trajectory_files.write(run / "rollouts" / file, change(trajectories), stats)

    def book(rows):
        for row in rows:
            if row.get("file") == file:
                row["sha256"] = digest

    rewrite(run, book)


def with_call(trajectories, index, **values):
    calls = list(trajectories[0].calls)
    calls[index] = replace(calls[index], **values)
    return [replace(trajectories[0], calls=tuple(calls)), *trajectories[1:]]


def with_versions(trajectories, *numbers):
    """Of the first trajectory, call by call."""
    for index, number in enumerate(numbers):
        trajectories = with_call(
            trajectories, index, policy_versions=(number,) * len(trajectories[0].calls[index].completion_ids)
        )
    return trajectories


def set_json(path, change):
    value = read_json(path)
    change(value)
    write_json(path, value)


def without(rows, event, group):
    return [row for row in rows if row != row_of(rows, event, group)]


def versions(run, change):
    """versions.jsonl through `change`, a function of its rows."""
    path = run / "policy" / "versions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows) or rows))


def unproven(run, version):
    """Says that a server sampled under the version before its probe failed."""
    (run / "policy" / "unproven.jsonl").write_text(
        json.dumps({"version": version, "reason": "the head was old"}) + "\n"
    )


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


def test_a_run_whose_books_are_right_is_clean(run):
    code, lines, _ = audit(run)
    assert (code, lines) == (0, [f"{run}: clean; 7 groups, each with one end, every sampled token accounted for"])


def test_so_is_one_made_before_runs_were_asynchronous(old_run):
    code, lines, _ = audit(old_run)
    assert (code, lines) == (0, [f"{old_run}: clean; 3 groups, each with one end, every sampled token accounted for"])


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
