"""Asynchronous runs with the real programs: they overlap, stay within the bound, end, and come back from every kill."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress

import pytest
from conftest import ROOT, metrics_of, pids_of, processes_of, run_program

from coderepairrl.files import read_json
from coderepairrl.processes import proc
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig

SMALL = [
    "rollout.groups_per_step=3",
    "rollout.group_size=4",
    "rollout.limits.max_turns=4",
    "rollout.limits.max_completion_tokens=48",
    "rollout.tasks.train=12",
    "rollout.tasks.heldout=6",
    "rollout.server.kv_cache_mib=128",
    "rollout.server.start_timeout_s=900",
    "rollout.concurrent_episodes=8",
]
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
        out[step].update(
            step - steps_of[version]
            for t in trajectory_files.read(path)[0]
            for call in t.calls
            for version in call.policy_versions
        )
    return out


@pytest.mark.whole
def test_rollout_and_training_overlap_and_a_late_group_is_waited_for(policy, tmp_path):
    """With two ranks that share each row, and a reference policy. One agent sleeps for a minute: its group is admitted
    with the first step's,
    and the run waits for it rather than train what is too old, or leave it out."""
    run = tmp_path / "run"
    result = run_program(
        *command(
            run,
            policy,
            *RANDOM,
            "rollout.max_staleness=2",
            "training.steps=6",
            "engine.sequence_ranks=2",
            "training.algorithm.kl_coefficient=0.01",
            "training.evaluate=false",
            "training.evaluate_every=0",
            program="tests/programs/train_with_a_sleeper.py",
        ),
        timeout_s=PATIENCE_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    assert sum(row["event"] == "trained" for row in rows) == 6 * 3 and not any(
        "stale" in row.get("masked", {}) for row in rows
    )
    ages = staleness(run)
    assert set(ages[0]) == {0} and all(0 <= age <= 2 for counter in ages.values() for age in counter)
    assert sum(ages.values(), Counter())[1] > 0  # sampled while the step before was not trained yet
    episodes = [t for path in run.glob("rollouts/step_*.parquet") for t in trajectory_files.read(path)[0]]
    # went on under new weights
    assert any(len({v for call in t.calls for v in call.policy_versions}) > 1 for t in episodes)
    running = [(t.stats["started_at"], t.stats["started_at"] + t.stats["generation_s"]) for t in episodes]
    training = [
        (row["time"] - row["update_s"] - row["train_s"], row["time"] - row["update_s"]) for row in metrics_of(run)
    ]
    assert any(
        start < end_training and end > start_training
        for start, end in running
        for start_training, end_training in training
    )
    assert metrics_of(run)[0]["kl"] == 0.0 and all(row["kl"] > 0 for row in metrics_of(run)[1:])
    assert read_json(run / "status.json") | {"pid": 0} == {
        "state": "done",
        "attempt": 1,
        "step": 6,
        "pid": 0,
        "reason": "",
        "recoveries": [],
    }
    sleeper = max(episodes, key=lambda t: t.seconds)
    assert sleeper.seconds > 60
    step = {row["group"]: row["step"] for row in rows if row["event"] == "stored"}[sleeper.group_id]
    awake = next(i for i, row in enumerate(rows) if row["event"] == "finished" and row["group"] == sleeper.group_id)
    # while it slept: its own step, and two ahead
    assert sum(row["event"] == "admitted" for row in rows[:awake]) == 3 * (step + 3)


@pytest.mark.cluster
def test_refills_end_with_a_reason(policy, tmp_path):
    """A policy that never repairs anything: two groups a step are replaced in vain, then the step takes what there
    is."""
    run = tmp_path / "run"
    result = run_program(
        *command(
            run,
            policy,
            "rollout.max_refills=2",
            "training.steps=2",
            "training.evaluate=false",
            "training.evaluate_every=0",
        ),
        timeout_s=PATIENCE_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    dropped = [row for row in rows if row["event"] == "dropped"]
    assert Counter((row["reason"], row["step"]) for row in dropped) == {
        ("zero_variance", 0): 2,
        ("zero_variance", 1): 2,
    }
    assert sorted(row["position"] for row in rows if row["event"] == "admitted") == list(range(10))
    assert all(
        row["trained"] == 0 and set(row["masked"]) == {"zero_variance"} for row in rows if row["event"] == "trained"
    )
    for step in range(2):
        stats = trajectory_files.read(run / "rollouts" / f"step_{step:05d}.parquet")[1]
        assert stats["refills"] == 2 and stats["refills_exhausted"] is True
    assert read_json(run / "summary.json")["tokens_dropped"]["zero_variance"] == sum(row["tokens"] for row in dropped)


STEPS = 16  # ten attempts that are killed don't get that far
TRACES = (
    "rollouts/buffer/*.parquet",
    "rollouts/step_*.parquet",
    "rollouts/step_*.trained.json",
    "policy/engine_*.json",
    "policy/versions.jsonl",
    "policy/v0*",
    "checkpoints/*.tmp",
    "checkpoints/step_*",
)  # what an attempt leaves when it has come to some place


def trace(run, pattern: str) -> dict:
    """Path -> when it was last changed."""
    out = {}
    for path in run.glob(pattern):
        with suppress(FileNotFoundError):
            out[path] = path.stat().st_mtime_ns
    return out


def rank_of(run, rank: int) -> int | None:
    """The process of a trainer's rank, while there is one."""
    return next(
        (
            pid
            for pid, words in pids_of(run).items()
            if "role=train" in words and f"RANK={rank}" in proc.words(pid, "environ")
        ),
        None,
    )


def killed_at(moment: dict, arguments: list[str], run) -> None:
    """Starts the program, and kills it or one of its ranks at a moment: so many seconds after its start, or after a
    trace of it appears."""
    before = trace(run, moment["pattern"]) if moment["pattern"] else {}
    program = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + PATIENCE_S

    def wait(holds) -> None:
        while not holds():
            assert program.poll() is None and time.monotonic() < deadline, (moment, (run / "status.json").read_text())
            time.sleep(0.005)

    try:
        if moment["pattern"]:
            wait(lambda: trace(run, moment["pattern"]).items() - before.items())
        time.sleep(moment["seconds"])
        if moment["rank"] is not None:
            wait(lambda: rank_of(run, moment["rank"]))
            os.kill(rank_of(run, moment["rank"]), signal.SIGKILL)
            assert program.wait(PATIENCE_S) == 1  # by itself
            status = read_json(run / "status.json")
            assert status["state"] == "failed" and "the trainer program ended" in status["reason"]
            assert not processes_of(run)
    finally:
        program.kill()
        program.wait(60)


@pytest.mark.cluster
def test_killed_at_random_moments_it_goes_on(policy, tmp_path):
    """Ten. Half of them while everything starts, half after it has left some trace; half are the driver's death, half
    that of a rank of two."""
    run, draw = tmp_path / "run", random.Random(3)
    arguments = command(
        run,
        policy,
        *RANDOM,
        "rollout.max_staleness=1",
        f"training.steps={STEPS}",
        "training.checkpoint_every=2",
        "training.evaluate=false",
        "training.evaluate_every=0",
    )
    at_start, after_trace = (
        lambda: {"pattern": None, "seconds": draw.uniform(0, 25)},
        lambda: {"pattern": draw.choice(TRACES), "seconds": draw.uniform(0, 1)},
    )
    for moment, rank in zip([after_trace, at_start] * 5, draw.sample([None] * 5 + [0, 0, 1, 1, 1], 10), strict=True):
        killed_at(moment() | {"rank": rank}, arguments, run)
    result = run_program(*arguments, timeout_s=PATIENCE_S)  # at once: it waits for what is left of the last attempt
    assert result.returncode == 0, result.stdout + result.stderr
    rows = check_books(run)
    assert Counter(row["step"] for row in rows if row["event"] == "trained") == dict.fromkeys(range(STEPS), 3)
    assert any(row.get("reason") == "attempt_ended" for row in rows)
    assert all(age <= 1 for counter in staleness(run).values() for age in counter)
    versions = [row["version"] for row in ledger.rows(run / "policy" / "versions.jsonl")]
    assert len(set(versions)) == len(versions)
    losses = defaultdict(set)
    for row in metrics_of(run):
        losses[row["step"]].add(row["loss"])
    # a step trained again is the same step, to the bit
    assert set(losses) == set(range(STEPS)) and all(len(values) == 1 for values in losses.values())
    assert len(metrics_of(run)) >= STEPS
    status = read_json(run / "status.json")
    assert (status["state"], status["recoveries"]) == ("done", [])  # vLLM is started once an attempt


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
def test_what_is_out_of_bounds_is_refused(policy, tmp_path, override, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.chdir(ROOT)
    from train_grpo import main

    with pytest.raises(SystemExit) as end:
        main(command(tmp_path / "run", policy, override)[1:])
    error = capsys.readouterr().err
    assert (
        end.value.code == 1
        and override.split("=")[0] in error
        and "Traceback" not in error
        and not (tmp_path / "run").exists()
    )
