"""Patches as they come: the one place that applies what others wrote: a prediction, the oracle's patch, a test patch.

A patch is read as SWE-bench's harness reads it, by its three tries in its order. Other than there, each try starts from
the
same checkout: one that failed leaves nothing behind. What has no content is left out and named: "Binary files differ".
"""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.diffs import is_unicode, split_diff
from coderepairrl.sandboxes import Sandbox, SandboxConfig, start_sandbox
from coderepairrl.sandboxes.diff_bounds import exceeded, limited, too_large
from coderepairrl.sandboxes.git import VARIABLES
from coderepairrl.types import Task

REGULAR, EXECUTABLE, LINK = "100644", "100755", "120000"
STRICT = "git apply"
ONLY_STRICT = {STRICT: ("git", "apply", "--whitespace=nowarn")}
LAXER = {  # by name; the patch's path is added
    "git apply --reject": ("git", "apply", "--verbose", "--reject"),
    "patch --fuzz=5": ("patch", "--batch", "--fuzz=5", "-p1", "-i"),
}
_LEFTOVERS = (".rej", ".orig")  # what git and patch write beside a file


@dataclass(frozen=True)
class Applied:
    """`how`: the try that took it, empty where none did; `left_out`: path -> why."""

    how: str
    problem: str
    left_out: dict[str, str]

    def __str__(self) -> str:
        names = [f"{path} ({why})" for path, why in self.left_out.items()]
        return f"applied by {self.how}" + (f", without {', '.join(names)}" if names else "")


async def apply_published(sandbox: Sandbox, patch: str) -> Applied:
    """All or nothing. `sandbox` is as it was started, or has changes that the patch does not meet."""
    if problem := await asyncio.to_thread(too_large, patch):
        return Applied("", problem, {})
    text, left_out = await asyncio.to_thread(carried, patch)
    if not text.strip():
        return Applied(STRICT, "" if left_out else "it holds no change", left_out)
    problem = await sandbox.apply(text)
    if not problem:
        return Applied(STRICT, "", left_out)
    if not is_unicode(text):
        return Applied("", problem, left_out)
    for how, argv in LAXER.items():
        diff, lost = await _by_command(sandbox, argv, text)
        if diff and not await sandbox.apply(diff):
            return Applied(how, "", left_out | lost)
    return Applied("", problem, left_out)


async def as_diff(task: Task, patch: str, config: SandboxConfig) -> tuple[str, Applied]:
    """What the runner would see of an agent that made this patch, and how it was applied. Raises SandboxError."""
    async with start_sandbox(config, task) as sandbox:
        applied = await apply_published(sandbox, patch)
        diff = await sandbox.diff()
    return diff, Applied(applied.how, applied.problem, applied.left_out | sandbox.left_out)


async def _by_command(sandbox: Sandbox, argv: tuple[str, ...], text: str) -> tuple[str, dict[str, str]]:
    """What the command makes of the base, as a diff, and what that lacks; nothing where the command fails. In a
    sandbox,
    since a patch may be a script."""
    async with start_sandbox(sandbox.config, sandbox.task) as other:
        folder, inside = other.share("patch")
        (folder / "patch.diff").write_bytes(_bytes(text))
        result = await other.run([*argv, f"{inside}/patch.diff"])
        diff = "" if result.exit_code else await other.diff()
    return await asyncio.to_thread(_less_leftovers, diff, text), other.left_out


def _less_leftovers(diff: str, text: str) -> str:
    own = (change for change in split_diff(diff) if not change.path.endswith(_LEFTOVERS) or change.path in text)
    return "".join(change.text for change in own)


def carried(patch: str) -> tuple[str, dict[str, str]]:
    """(the patch with its last line ended, less sections without content; those sections)."""
    changes = split_diff(patch)
    without = [change for change in changes if change.binary and not change.content]
    if without:
        patch = "".join(change.text for change in changes if not change.binary or change.content)
    paths = (path for change in without for path in sorted(change.paths))
    left_out = dict.fromkeys(paths, "the patch does not hold the content of this binary file")
    return patch if patch.endswith("\n") else f"{patch}\n", left_out


@dataclass(frozen=True)
class Entry:
    """A file of a checkout as git sees it; of a link `data` is its target."""

    data: bytes
    mode: str = REGULAR


def entry_of(root: Path, path: str) -> Entry | None:
    """None where no file is, or a link leads to it."""
    file = root / path
    if any(parent.is_symlink() for parent in file.parents if parent != root and parent.is_relative_to(root)):
        return None
    if file.is_symlink():
        return Entry(os.fsencode(os.readlink(file)), LINK)
    return Entry(file.read_bytes(), EXECUTABLE if file.stat().st_mode & 0o100 else REGULAR) if file.is_file() else None


def _lay_out(root: Path, files: dict[str, Entry]) -> None:
    for path, entry in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if entry.mode == LINK:
            file.symlink_to(os.fsdecode(entry.data))
        else:
            file.write_bytes(entry.data)
            file.chmod(int(entry.mode, 8) & 0o777)


@contextmanager
def applied_in_folder(
    files: dict[str, Entry], patch: str, tries: dict[str, tuple[str, ...]]
) -> Iterator[tuple[Path | None, str]]:
    """(a folder with the files after the patch, or None; why it doesn't apply). On this machine: an agent's patch is
    for
    ONLY_STRICT, and `patch` is kept from running a data set's as a script (-u). Blocks: call it in a thread."""
    if problem := too_large(patch):
        yield None, problem
        return
    text, _ = carried(patch)
    if not is_unicode(text):
        yield None, "it is not valid Unicode: it holds a lone surrogate"
        return
    with tempfile.TemporaryDirectory(prefix="patch-") as own:
        diff = Path(own, "patch.diff")
        diff.write_bytes(_bytes(text))
        for how, (tool, *options) in tries.items():
            root = Path(own, how.replace(" ", "-"))
            root.mkdir()
            _lay_out(root, files)
            argv = limited(tool, *(("-u",) if tool == "patch" else ()), *options, str(diff))
            done = subprocess.run(argv, cwd=root, capture_output=True, env=VARIABLES | {"GIT_CEILING_DIRECTORIES": own})
            if not done.returncode or not text.strip():
                yield root, ""
                return
            err = done.stderr.decode(errors="replace").strip()
            if beyond := exceeded(done.returncode, err):  # no laxer reading makes it smaller
                yield None, beyond
                return
            said = [line for line in err.split("\n") if line and not line.startswith("warning: ")]
            problem = problem or (said or [f"{tool} failed"])[0]
        yield None, problem


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
