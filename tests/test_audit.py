"""A small run made by hand is clean; every way of cooking its books is found, also with the ledger's chain made anew."""
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coderepairrl import ledger, store
from coderepairrl.ledger import Ledger
from coderepairrl.policy import read_json, write_json
from coderepairrl.summary import write_summary
from coderepairrl.types import Call, Outcome, Trajectory, Verdict

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION = importlib.util.spec_from_file_location("audit", ROOT / "analysis" / "audit.py")
MODULE = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(MODULE)
violations = MODULE.audit
STEP, EVALUATION = "step_00000.parquet", "eval_before.parquet"


def trajectory(group, number, split="train", reward=0.0, version=0):
    """Two calls, the second a continuation of the first; 5 sampled tokens."""
    first = Call(0, None, None, (1, 2, 3), (10, 11, 12), (-0.1, -0.2, -0.3), (version,) * 3, "stop", False, 0.0, 0.1)
    second = Call(1, 0, "completion", (1, 2, 3, 10, 11, 12, 4), (13, 14), (-0.4, -0.5), (version,) * 2, "stop", False, 0.2, 0.1)
    verdict = Verdict(bool(reward), "junit+canary", {"t::a": "passed" if reward else "failed"}, {}, (), "", 0.1)
    return Trajectory(f"{group}-{number}", group, f"task-{group[-1]}", split, 0, (first, second), "", Outcome.SUBMITTED, "", verdict, {"tests": reward}, reward, 1.0)


def sampled(members):
    return sum(len(call.completion_ids) for t in members for call in t.calls)


@pytest.fixture
def run(tmp_path):
    """One evaluation group, then one step of two groups: the second of them has no variance and is masked."""
    work = Ledger(tmp_path / "ledger.jsonl")
    groups = {EVALUATION: ["a1-eval_before-0"], STEP: ["a1-s0-0", "a1-s0-1"]}
    for file, names in groups.items():
        split = "heldout" if file == EVALUATION else "train"
        members = {group: [trajectory(group, i, split, float(i == 0 and group != "a1-s0-1")) for i in range(2)] for group in names}
        for group in names:
            work.write("admitted", group, task=f"task-{group[-1]}", split=split, version=0, episodes=2)
        digest = store.write(tmp_path / "rollouts" / file, [t for ts in members.values() for t in ts], {"seconds": 1.0})
        for group in names:
            work.write("finished", group, outcomes=["submitted"] * 2, sampled=sampled(members[group]))
            work.write("graded", group, rewards=[t.reward for t in members[group]], file=file, sha256=digest)
        for group in names if split == "heldout" else ():
            work.write("dropped", group, reason="evaluation", tokens=sampled(members[group]))
    work.write("trained", "a1-s0-0", step=0, trained=10, masked={})
    work.write("trained", "a1-s0-1", step=0, trained=0, masked={"zero_variance": 10})
    work.close()
    seconds = dict.fromkeys(("rollout_s", "train_s", "update_s", "step_s"), 1.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "tokens_trained": 10, "failed_updates": 0, "logprob_gap": 1e-6} | seconds) + "\n")
    summary = write_summary(tmp_path)
    assert (summary["tokens_sampled"], summary["tokens_trained"], summary["tokens_masked"]["zero_variance"], summary["tokens_dropped"]["evaluation"]) == (30, 10, 10, 10)
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
    trajectories, stats = store.read(run / "rollouts" / file)
    digest = store.write(run / "rollouts" / file, change(trajectories), stats)
    def book(rows):
        for row in rows:
            if row.get("file") == file:
                row["sha256"] = digest
    rewrite(run, book)


def with_call(trajectories, index, **values):
    calls = list(trajectories[0].calls)
    calls[index] = replace(calls[index], **values)
    return [replace(trajectories[0], calls=tuple(calls)), *trajectories[1:]]


def set_json(path, change):
    value = read_json(path)
    change(value)
    write_json(path, value)


TRAINED_EVALUATION = {"event": "trained", "group": "a1-eval_before-0", "step": 0, "trained": 10, "masked": {}}
TAMPERINGS = {  # name -> (what is done, what the audit says)
    "a number in a row": (lambda run: rewrite(run, lambda rows: row_of(rows, "finished", "a1-s0-0").update(sampled=11), chained=False), "does not follow"),
    "a number in a row, chain made anew": (lambda run: rewrite(run, lambda rows: row_of(rows, "finished", "a1-s0-0").update(sampled=11)), "11 tokens sampled, 10 accounted for"),
    "sampled and trained alike, chain made anew": (
        lambda run: rewrite(run, lambda rows: [row_of(rows, "finished", "a1-s0-0").update(sampled=11), row_of(rows, "trained", "a1-s0-0").update(trained=11)] and None),
        "10 sampled tokens in the file, 11 in the ledger"),
    "a row less": (lambda run: rewrite(run, lambda rows: rows[:3] + rows[4:], chained=False), "does not follow"),
    "an end less, chain made anew": (lambda run: rewrite(run, lambda rows: rows[:-1]), "0 ends instead of one"),
    "an admission less, chain made anew": (lambda run: rewrite(run, lambda rows: [r for r in rows if r != row_of(rows, "admitted", "a1-s0-1")]), "admitted 0 times"),
    "a whole group less, chain made anew": (lambda run: rewrite(run, lambda rows: [r for r in rows if r["group"] != "a1-s0-0"]), "summary.json: 10 tokens trained, the ledger has 0"),
    "a grading less, chain made anew": (lambda run: rewrite(run, lambda rows: [r for r in rows if r != row_of(rows, "graded", "a1-s0-1")]), "not finished and graded once"),
    "a second end, chain made anew": (lambda run: rewrite(run, lambda rows: [*rows, row_of(rows, "trained", "a1-s0-0")]), "2 ends instead of one"),
    "evaluation that was trained as well": (lambda run: rewrite(run, lambda rows: [*rows, TRAINED_EVALUATION]), "2 ends"),
    "evaluation that was trained instead": (lambda run: rewrite(run, lambda rows: [*(r for r in rows if r["event"] != "dropped"), TRAINED_EVALUATION]), "held-out tasks were trained"),
    "held-out tasks under another name": (lambda run: new_file(run, lambda ts: [replace(t, split="train") for t in ts], EVALUATION), "split is not the ledger's"),
    "outcomes, chain made anew": (lambda run: rewrite(run, lambda rows: row_of(rows, "finished", "a1-s0-0").update(outcomes=["submitted", "turn_limit"])), "outcomes differ"),
    "a file that is no Parquet": (lambda run: (run / "rollouts" / STEP).write_text("not at all"), "its sha256 is not the ledger's"),
    "rewards, chain made anew": (lambda run: rewrite(run, lambda rows: row_of(rows, "graded", "a1-s0-0").update(rewards=[1.0, 1.0])), "rewards differ between file and ledger"),
    "episodes, chain made anew": (lambda run: rewrite(run, lambda rows: row_of(rows, "admitted", "a1-s0-0").update(episodes=3)), "2 episodes of 3"),
    "a file rewritten": (lambda run: store.write(run / "rollouts" / STEP, store.read(run / "rollouts" / STEP)[0], {"seconds": 2.0}), "its sha256 is not the ledger's"),
    "a file gone": (lambda run: (run / "rollouts" / STEP).unlink(), "files of the ledger that are gone"),
    "a file nobody booked": (lambda run: store.write(run / "rollouts" / "step_00001.parquet", [trajectory("a1-s1-0", 0)], {}), "no ledger row speaks of it"),
    "another version in the file, booked": (lambda run: new_file(run, lambda ts: with_call(ts, 1, policy_versions=(0, 1))), "a token of another policy version"),
    "a reward in the file, booked": (lambda run: new_file(run, lambda ts: [replace(ts[0], reward=0.5), *ts[1:]]), "rewards differ between file and ledger"),
    "an episode less in the file, booked": (lambda run: new_file(run, lambda ts: ts[1:]), "1 episodes of 2"),
    "a group less in the file, booked": (lambda run: new_file(run, lambda ts: [t for t in ts if t.group_id != "a1-s0-1"]), "a1-s0-1: in no Parquet file"),
    "a logprob less in the file, booked": (lambda run: new_file(run, lambda ts: with_call(ts, 0, logprobs=(-0.1,))), "lengths differ"),
    "a prompt that is not its parent's": (lambda run: new_file(run, lambda ts: with_call(ts, 1, prompt_ids=(1, 2, 3, 10, 99, 12, 4))), "does not start with its parent's tokens"),
    "the summary's trained tokens": (lambda run: set_json(run / "summary.json", lambda s: s.update(tokens_trained=11)), "summary.json: 11 tokens trained"),
    "the summary's sampled tokens": (lambda run: set_json(run / "summary.json", lambda s: s.update(tokens_sampled=31)), "summary.json: 31 tokens sampled"),
    "the summary's masked tokens": (lambda run: set_json(run / "summary.json", lambda s: s["tokens_masked"].update(zero_variance=9)), "30 tokens sampled, 29 accounted for"),
    "the metrics": (lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('"tokens_trained": 10', '"tokens_trained": 12')), "12 tokens trained in metrics.jsonl"),
    "a step less in the metrics": (lambda run: (run / "metrics.jsonl").write_text(""), "step 0: None tokens trained"),
    "no ledger": (lambda run: (run / "ledger.jsonl").unlink(), "empty or missing"),
}


def test_a_run_whose_books_are_right_is_clean(run):
    code, lines, _ = audit(run)
    assert (code, lines) == (0, [f"{run}: clean; 3 groups, each with one end, every sampled token accounted for"])


@pytest.mark.parametrize("name", TAMPERINGS)
def test_cooked_books_are_found(run, name):
    tamper, said = TAMPERINGS[name]
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


def test_groups_of_a_killed_attempt_need_no_end(run):
    """They ran again under other names; the file of their step is the later attempt's."""
    def killed(rows):
        return [{"event": "admitted", "group": "a0-s0-0", "task": "task-0", "split": "train", "version": 0, "episodes": 2}, *rows]
    rewrite(run, killed)
    assert audit(run)[0] == 0


def test_without_a_run_folder_the_usage_is_shown(tmp_path):
    assert "python analysis/audit.py" in audit(tmp_path / "nowhere")[2]
