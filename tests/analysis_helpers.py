"""Shared by several tests: test_analysis.py and others."""

import contextlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.rollout import trajectory_files
from coderepairrl.types import Call, Outcome, Trajectory, Verdict

ROOT = Path(__file__).resolve().parents[1]


def module(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "analysis" / f"{name}.py")
    loaded = importlib.util.module_from_spec(specification)
    sys.modules[name] = loaded  # the programs of analysis/ import each other by their names
    specification.loader.exec_module(loaded)
    return loaded


NAMES = ("seeds", "figure", "series", "panels", "curves", "table", "timeline")
seeds, _, series, panels, curves, table, timeline = (module(name) for name in NAMES)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def program(called, *arguments):
    """The program's main, as its command line would call it."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            called.main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # sys.exit(text): Python prints it and ends with 1
            code, _ = (1, err.write(f"{exit_.code}\n")) if isinstance(exit_.code, str) else (exit_.code or 0, None)
    return Done(code, out.getvalue(), err.getvalue())


def evaluated(path, resolved):
    """`resolved`: for each task, that of its episodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    call = Call(0, None, None, (1,), (2,), (-0.1,), (0,), "stop", False, 0.0, 0.1)
    trajectory_files.write(
        path,
        [
            Trajectory(
                f"{task}-{number}",
                str(task),
                f"task-{task}",
                "heldout",
                0,
                (call,),
                "",
                Outcome.SUBMITTED,
                "",
                Verdict(bool(good), "junit+canary", {}, {}, (), "", 0.1),
                {},
                float(good),
                1.0,
                stats={},
            )
            for task, episodes in enumerate(resolved)
            for number, good in enumerate(episodes)
        ],
        {},
    )
