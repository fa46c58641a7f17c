"""Shared by several tests: test_books.py and others."""

import importlib.util
import sys
from pathlib import Path

from coderepairrl.types import Call, Environment, Outcome, Task, Trajectory, Verdict

ROOT = Path(__file__).resolve().parents[1]


SPECIFICATION = importlib.util.spec_from_file_location("audit", ROOT / "analysis" / "audit.py")
MODULE = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(MODULE)


def task(position, **metadata):
    environment = Environment("none", None, sys.executable, ())
    return Task(f"task-{position}", "", environment, {}, {}, (), (), (), "", metadata)


def trajectory(group, number, split, reward, versions):
    calls = tuple(
        Call(
            i,
            i - 1 if i else None,
            "completion" if i else None,
            tuple(range(3 * i + 1)),
            (3 * i + 1, 3 * i + 2),
            (-0.1, -0.2),
            (version,) * 2,
            "stop",
            False,
            0.0,
            0.1,
        )
        for i, version in enumerate(versions)
    )
    verdict = Verdict(bool(reward), "junit+canary", {}, {}, (), "", 0.1)
    return Trajectory(
        f"{group}-{number}",
        group,
        "task",
        split,
        0,
        calls,
        "",
        Outcome.SUBMITTED,
        "",
        verdict,
        {"tests": reward},
        reward,
        1.0,
        (),
        {"started_at": 1.0, "generation_s": 0.5, "grading_s": 0.5},
    )
