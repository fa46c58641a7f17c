"""Shared by the tests of the audit: runs whose books are right, and what can be done to them."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import yaml
from conftest import ROOT

from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.run.summary import write_summary
from coderepairrl.types import Call, Outcome, Trajectory, Verdict

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


def make_old_run(run):
    """As runs were before they were asynchronous: one evaluation group, then one step of two groups; the second of them
    has no variance and is masked."""
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


def make_run(run):
    """Asynchronous, two steps of two groups. a1-p1 was lost with its attempt and ran again, a1-p2 had no variance and
    was replaced, a2-p4 has none either and is masked, a2-p1 went on under new weights. Versions 1 and 2 are both of one
    update: the first attempt's was lost, too."""
    (run / "policy").mkdir()
    (run / "policy" / "versions.jsonl").write_text(
        "".join(json.dumps({"version": v, "step": s}) + "\n" for v, s in ((0, 0), (1, 1), (2, 1), (3, 2)))
    )
    configure(run, max_staleness=1, max_refills=1)
    work = Ledger(run / "ledger.jsonl")
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
        sha256=trajectory_files.write(run / "rollouts" / EVALUATION, held_out, {"seconds": 1.0}),
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
        path = run / "rollouts" / f"step_{step:05d}.parquet"
        digest = trajectory_files.write(path, [t for group in names for t in members[group]], {"seconds": 1.0})
        for group in names:
            work.write("stored", group, step=step, file=path.name, sha256=digest)
    work.write("trained", "a1-p0", step=0, version=2, trained=10, masked={})
    work.write("trained", "a1-p3", step=0, version=2, trained=10, masked={})
    work.write("trained", "a2-p1", step=1, version=3, trained=10, masked={})
    work.write("trained", "a2-p4", step=1, version=3, trained=0, masked={"zero_variance": 10})
    work.close()
    summary = conclude(run, [20, 10])
    assert (summary["tokens_sampled"], summary["tokens_trained"]) == (60, 30)
    assert summary["tokens_masked"] == {"zero_variance": 10}
    assert summary["tokens_dropped"] == {
        "evaluation": 10,
        "infrastructure_error": 0,
        "zero_variance": 10,
        "attempt_ended": 0,
    }
    return run


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
