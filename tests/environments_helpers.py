"""Shared by the tests of environments: what a build and a sandbox of it give, and an image to build from."""

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from coderepairrl.environments import build
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.types import Task

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# what an editable install comes to
INSTALL = """echo /repo/src > "$(python -c 'import site; print(site.getsitepackages()[0])')/module.pth" """


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgSign=false"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def built(environment, config):
    return asyncio.run(build(environment, config))


def in_sandbox(environment, command, tmp_path, kind="bubblewrap"):
    task = Task("t", "", environment, {}, {}, (), (), (), "")

    async def main():
        async with start_sandbox(SandboxConfig(kind=kind, scratch=str(tmp_path / "scratch")), task) as sandbox:
            return (await sandbox.run(command)).output

    return asyncio.run(main())


def make_image_root(folder):
    """An unpacked image of this machine's own programs, laid out like SWE-bench's: a conda whose activation chooses the
    Python, a checkout at /testbed."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no /usr/bin/python3 to make an image of")
    for name in (
        "proc",
        "sys",
        "dev",
        "tmp",
        "etc",
        "root",
        "opt/env/bin",
        "opt/miniconda3/bin",
        "usr/bin",
        "testbed/src",
    ):
        (folder / name).mkdir(parents=True)
    for name in (
        "bash",
        "cat",
        "env",
        "id",
        "ls",
        "tar",
        "mount",
        "unshare",
        "setpriv",
        "prlimit",
        "git",
        os.path.realpath(python),
    ):
        program = shutil.which(name)
        for needed in [
            program,
            *(word for word in subprocess.check_output(["ldd", program], text=True).split() if word.startswith("/")),
        ]:
            inside = folder / ("usr/bin/" + os.path.basename(name) if needed == program else needed.lstrip("/"))
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(needed, inside)
    library = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"], text=True
    ).strip()
    shutil.copytree(
        library,
        folder / library.lstrip("/"),
        ignore=shutil.ignore_patterns("test", "tests", "__pycache__", "config-*", "idlelib", "ensurepip"),
    )
    (folder / "bin").symlink_to("usr/bin")
    (folder / "usr/bin/sh").symlink_to("bash")
    (folder / "opt/env/bin/python").symlink_to("/usr/bin/" + os.path.basename(os.path.realpath(python)))
    (folder / "opt/miniconda3/bin/activate").write_text(
        'conda() { export CONDA_DEFAULT_ENV=$2 PATH="/opt/env/bin:$PATH"; }\n'
    )
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\n")
    checkout = folder / "testbed"
    git(checkout, "init", "-q", "-b", "main")
    for text in ("value = 3  # the fix", "value = 1"):
        (checkout / "src/module.py").write_text(text + "\n")
        git(checkout, "add", "-A")
        git(checkout, "commit", "-q", "-m", text)
    (checkout / ".gitignore").write_text("built\n")
    (checkout / "built").write_text("compiled\n")
    return folder
