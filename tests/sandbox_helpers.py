"""A tiny task, and a sandbox of it that leaves nothing behind: for test_sandboxes.py and test_sandbox_diffs.py."""

import os
import shutil
import subprocess
import sys

import pytest

from coderepairrl.processes import proc
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.types import Environment, Task

FILES = {"lib.py": "def f():\n    return 1\n", "pkg/deep.py": "x = 1\n"}
needs_apptainer = pytest.mark.skipif(not shutil.which("apptainer"), reason="Apptainer is not installed")
# "overlay": bubblewrap with every checkout, however small, over its template
ISOLATED = ["bubblewrap", "overlay", pytest.param("apptainer", marks=needs_apptainer)]
KINDS = [*ISOLATED, "local"]
isolated = pytest.mark.parametrize("kind", ISOLATED)
both = pytest.mark.parametrize("kind", KINDS)


def sandbox_config(kind, scratch, **limits):
    return SandboxConfig(kind="bubblewrap" if kind == "overlay" else kind, scratch=str(scratch), **limits)


def make_task(files=FILES, base=None, variables=None):
    environment = Environment("tiny", base, sys.executable, ("{python}",), variables=variables or {})
    return Task("tiny-1", "", environment, files, {"test_hidden.py": "SECRET"}, (), (), (), "")


def running(marker):
    """Command lines of live processes that hold `marker` (a killed one may stay a zombie until init takes it)."""
    lines = [" ".join(proc.words(pid)) for pid in proc.pids() if pid != os.getpid()]
    return [line for line in lines if marker in line]


def git_apply(folder, diff):
    """The task's files in `folder`, and `diff` applied by the user's plain git."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(
        ["git", "apply", "-"],
        input=diff.encode(),
        cwd=folder,
        check=True,
        env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )
