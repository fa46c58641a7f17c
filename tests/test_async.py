"""Asynchronous runs with the real programs: they overlap, stay within the bound, end, and come back from every kill."""
import asyncio
import subprocess
import sys
import time
from collections import Counter, defaultdict

import pytest
from conftest import ROOT, metrics_of, processes_of, run_program

from coderepairrl import ledger, store
from coderepairrl.files import read_json
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig

SMALL = ["rollout.groups_per_step=3", "rollout.group_size=4", "rollout.limits.max_turns=4", "rollout.limits.max_completion_tokens=48",
         "rollout.tasks.train=12", "rollout.tasks.heldout=6", "rollout.server.kv_cache_mib=128", "rollout.server.start_timeout_s=900",
         "rollout.concurrent_episodes=8"]
PATIENCE_S = 1800.0  # of a test with a program that does not end
RANDOM = ["rollout.rewards.weights={random: 1.0}", "rollout.rewards.require_submission=false"]


def command(run, policy, *overrides: str, program: str = "scripts/train_grpo.py") -> list[str]:
    return [program, "configs/quickstart.yaml", f"run={run}", f"model={policy}", *SMALL, *overrides]


def check_books(run) -> list[dict]:
    audit = run_program("analysis/audit.py", str(run))
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert not processes_of(run)
    return list(ledger.rows(run / "ledger.jsonl"))


def staleness(run) -> dict[int, Counter]:
    """Step -> how many of its sampled tokens were how stale."""
    steps_of = {row["version"]: row["step"] for row in ledger.rows(run / "policy" / "versions.jsonl")}
    out = defaultdict(Counter)
    for path in run.glob("rollouts/step_*.parquet"):
        step = int(path.stem[5:])
        out[step].update(step - steps_of[version] for t in store.read(path)[0] for call in t.calls for version in call.policy_versions)
    return out


@pytest.mark.whole
def test_rollout_and_training_overlap(policy, tmp_path):
    run = tmp_path / "run"
    result = run_program(*command(run, policy, *RANDOM, "rollout.max_staleness=2", "training.steps=6"), timeout_s=PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    assert sum(row["event"] == "trained" for row in rows) == 6 * 3 and not any("stale" in row.get("masked", {}) for row in rows)
    ages = staleness(run)
    assert set(ages[0]) == {0} and all(0 <= age <= 2 for counter in ages.values() for age in counter)
    assert sum(ages.values(), Counter())[1] > 0  # sampled while the step before was not trained yet
    episodes = [t for path in run.glob("rollouts/step_*.parquet") for t in store.read(path)[0]]
    assert any(len({v for call in t.calls for v in call.policy_versions}) > 1 for t in episodes)  # went on under new weights
    running = [(t.stats["started_at"], t.stats["started_at"] + t.stats["generation_s"]) for t in episodes]
    training = [(row["time"] - row["update_s"] - row["train_s"], row["time"] - row["update_s"]) for row in metrics_of(run)]
    assert any(start < end_training and end > start_training for start, end in running for start_training, end_training in training)
    assert read_json(run / "status.json") | {"pid": 0} == {"state": "done", "attempt": 1, "step": 6, "pid": 0, "reason": "", "recoveries": []}


@pytest.mark.whole
def test_an_agent_that_sleeps_for_a_minute(policy, tmp_path):
    """Its group is admitted with the first step's, and late: the run waits for it rather than train what is too old, or leave it out."""
    run = tmp_path / "run"
    result = run_program(*command(run, policy, *RANDOM, "rollout.max_staleness=1", "training.steps=4", "training.evaluate=false",
                                  program="tests/programs/train_with_a_sleeper.py"), timeout_s=PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    assert all(0 <= age <= 1 for counter in staleness(run).values() for age in counter)
    sleeper = max((t for path in run.glob("rollouts/step_*.parquet") for t in store.read(path)[0]), key=lambda t: t.seconds)
    assert sleeper.seconds > 60
    step = {row["group"]: row["step"] for row in rows if row["event"] == "stored"}[sleeper.group_id]
    awake = next(i for i, row in enumerate(rows) if row["event"] == "finished" and row["group"] == sleeper.group_id)
    assert sum(row["event"] == "admitted" for row in rows[:awake]) == 3 * (step + 2)  # while it slept: its own step, and one ahead
    assert not any("stale" in row.get("masked", {}) for row in rows) and sum(row["event"] == "trained" for row in rows) == 12


@pytest.mark.whole
def test_refills_end_with_a_reason(policy, tmp_path):
    """A policy that never repairs anything: two groups a step are replaced in vain, then the step takes what there is."""
    run = tmp_path / "run"
    result = run_program(*command(run, policy, "rollout.max_refills=2", "training.steps=2", "training.evaluate=false"), timeout_s=PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    dropped = [row for row in rows if row["event"] == "dropped"]
    assert Counter((row["reason"], row["step"]) for row in dropped) == {("zero_variance", 0): 2, ("zero_variance", 1): 2}
    assert sorted(row["position"] for row in rows if row["event"] == "admitted") == list(range(10))
    assert all(row["trained"] == 0 and set(row["masked"]) == {"zero_variance"} for row in rows if row["event"] == "trained")
    for step in range(2):
        stats = store.read(run / "rollouts" / f"step_{step:05d}.parquet")[1]
        assert stats["refills"] == 2 and stats["refills_exhausted"] is True
    assert read_json(run / "summary.json")["tokens_dropped"]["zero_variance"] == sum(row["tokens"] for row in dropped)


def kill_when(holds, arguments: list[str], run) -> None:
    """Starts the program, and kills it when `holds()`; its processes end with it."""
    program = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not holds():
            assert program.poll() is None and time.monotonic() < deadline, (run / "status.json").read_text()
            time.sleep(0.005)
    finally:
        program.kill()
        program.wait(60)


@pytest.mark.whole
def test_killed_at_several_moments_it_goes_on(policy, tmp_path):
    """While the first groups finish; when a step is trained; when a file appears; when new weights are out, after a resume."""
    run = tmp_path / "run"
    rollouts = run / "rollouts"
    arguments = command(run, policy, *RANDOM, "rollout.max_staleness=1", "training.steps=6", "training.checkpoint_every=2", "training.evaluate=false")
    moments = [lambda: list(rollouts.glob("buffer/*.parquet")),
               lambda: (rollouts / "step_00000.trained.json").exists(),
               lambda: (rollouts / "step_00003.parquet").exists(),
               lambda: (read_json(run / "policy" / "current.json") or {"step": 0})["step"] == 5]
    for holds in moments:
        kill_when(holds, arguments, run)
    result = run_program(*arguments, timeout_s=PATIENCE_S)  # at once: it waits for what is left of the last attempt
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    assert Counter(row["step"] for row in rows if row["event"] == "trained") == dict.fromkeys(range(6), 3)
    assert any(row.get("reason") == "attempt_ended" for row in rows)
    assert all(age <= 1 for counter in staleness(run).values() for age in counter)
    versions = [row["version"] for row in ledger.rows(run / "policy" / "versions.jsonl")]
    assert len(set(versions)) == len(versions)
    losses = defaultdict(set)
    for row in metrics_of(run):
        losses[row["step"]].add(row["loss"])
    assert set(losses) == set(range(6)) and all(len(values) == 1 for values in losses.values())  # a step trained again is the same step, to the bit
    assert len(metrics_of(run)) > 6
    status = read_json(run / "status.json")
    assert (status["attempt"], status["state"], status["recoveries"]) == (5, "done", [])  # vLLM is started once an attempt


def test_a_slow_tool_holds_up_its_own_agent_alone():
    async def scenario():
        call = {"name": "shell", "arguments": "not JSON"}
        slow = asyncio.create_task(Terminal(TerminalConfig(tool_delay_s=3600.0))._act(call, sandbox=None))
        answer, usable, submitted = await Terminal(TerminalConfig())._act(call, sandbox=None)
        assert not usable and not submitted and "not JSON" in answer
        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])
    asyncio.run(scenario())


@pytest.mark.parametrize("override", ["rollout.max_staleness=9", "rollout.max_staleness=-1", "rollout.max_refills=-1"])
def test_what_is_out_of_bounds_is_refused(policy, tmp_path, override):
    result = run_program(*command(tmp_path / "run", policy, override))
    assert result.returncode == 1 and override.split("=")[0] in result.stderr and "Traceback" not in result.stderr and not (tmp_path / "run").exists()
