"""Shared by the tests of whole runs."""

from conftest import run_program

SMALL = [
    "rollout.groups_per_step=3",
    "rollout.group_size=4",
    "rollout.limits.max_turns=4",
    "rollout.limits.max_completion_tokens=16",
    "rollout.tasks.train=12",
    "rollout.tasks.heldout=6",
    "rollout.server.kv_cache_mib=128",
    "rollout.concurrent_episodes=8",
]


def train(config: str, run, policy, *overrides: str):
    return run_program("scripts/train_grpo.py", config, f"run={run}", f"model={policy}", *overrides)


def check_books(run) -> None:
    audit = run_program("analysis/audit.py", str(run))
    assert audit.returncode == 0, audit.stdout + audit.stderr
