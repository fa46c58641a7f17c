"""A checkout that costs nothing: the template below, what changes above, put together by the kernel's overlay file
system.

The mount lives in a mount namespace of its own (for a normal user inside a user namespace, where the kernel allows it),
held by one idle
process that ends when its input closes, so also when this program is killed; the namespace and the mount end with it.
Nothing of it is
mounted on the host. Two ways lead in: processes start behind `Worktree.enter`, this program's own file operations go
through
`Worktree.view`, which the kernel resolves in the holder's namespace.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.processes import cause

END_S = 30.0
_MOUNT = 'mount -t overlay overlay -o "$1" "$2" && echo mounted && exec cat'


@dataclass(frozen=True)
class Worktree:
    """A checkout as processes see it that are started behind `enter`, and as this program sees it."""

    path: Path
    view: Path
    enter: tuple[str, ...] = ()

    @classmethod
    def plain(cls, path: Path) -> "Worktree":
        return cls(path, path)


class Overlay:
    """One mounted checkout: `folder`/{checkout (the mount), upper (what changed), work}. Blocking; some 6 ms to
    make."""

    def __init__(self, lower: Path, folder: Path, owner: int | None):
        self.upper, mounted = folder / "upper", folder / "checkout"
        like = os.lstat(lower)
        for made in (self.upper, folder / "work", mounted):
            made.mkdir()
        if owner is not None:
            os.chown(self.upper, owner, owner)
        os.chmod(self.upper, like.st_mode)
        os.utime(self.upper, ns=(like.st_mtime_ns, like.st_mtime_ns))
        root = os.getuid() == 0
        options = f"lowerdir={lower},upperdir={self.upper},workdir={folder / 'work'}" + ("" if root else ",userxattr")
        own = (
            ["--mount", "--propagation", "slave"]
            if root
            else ["--user", "--map-root-user", "--mount", "--propagation", "slave"]
        )
        try:
            self.holder = subprocess.Popen(
                ["unshare", *own, "sh", "-c", _MOUNT, "sh", options, str(mounted)],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(
                f"unshare could not be started ({error}): free processes, memory or file descriptors"
            ) from error
        said = self.holder.stdout.readline()
        if said != b"mounted\n":
            said += self.holder.stdout.read()
            self.close()
            raise SandboxError(
                f"an overlay cannot be mounted ({cause.of_text(said.decode(errors='replace'))}): set "
                "sandbox.overlay=false"
            )
        self.holder.stdout.close()
        namespaces = f"/proc/{self.holder.pid}/ns"
        users = [] if root else [f"--user={namespaces}/user", "--preserve-credentials"]
        # The holder is not waited for before close(), so its id stays its own even if it should die.
        self.worktree = Worktree(
            mounted,
            Path(f"/proc/{self.holder.pid}/root{mounted}"),
            (shutil.which("nsenter"), *users, f"--mount={namespaces}/mnt", "--"),
        )

    def close(self) -> None:
        """Unmounts. May be called twice."""
        self.holder.stdin.close()
        try:
            self.holder.wait(END_S)
        except subprocess.TimeoutExpired as error:
            self.holder.kill()
            raise SandboxError("an overlay's holder did not end: the machine is overloaded or a disk hangs") from error
        self.holder.stdout.close()


@functools.cache
def why_no_overlay(root: Path) -> str:
    """Empty when a checkout below `root` can be an overlay, or the reason why it must be a copy. Tries it once."""
    if re.search(r"[,:\\]", str(root)):
        return f"{root} holds a comma, colon or backslash"
    missing = [tool for tool in ("unshare", "nsenter", "mount", "cat") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    folder = Path(tempfile.mkdtemp(prefix="overlay-", suffix=".tmp", dir=root))
    try:
        (folder / "lower").mkdir()
        (folder / "lower/old").write_text("")
        overlay = Overlay(folder / "lower", folder, None)
        try:
            (overlay.worktree.view / "old").unlink()
            (overlay.worktree.view / "new").write_text("")
            seen = subprocess.run(
                [*overlay.worktree.enter, "ls", str(overlay.worktree.path)], capture_output=True, text=True, cwd="/"
            )
            return "" if seen.stdout == "new\n" else f"nsenter: {cause.of_text(seen.stderr)}"
        finally:
            overlay.close()
    except (SandboxError, OSError) as error:
        return str(error)
    finally:
        remove(folder)


def remove(folder: Path) -> None:
    """rmtree that also removes what an agent, or the kernel for an overlay, made unreadable for its own user."""

    def unlock(function, path, _error):
        for part in (os.path.dirname(path), path):
            if os.path.lexists(part) and not os.path.islink(part):
                os.chmod(part, 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            function(path)

    try:
        if folder.exists():
            shutil.rmtree(folder, onerror=unlock)
    except RecursionError:  # folders may be nested deeper than Python's stack, or than any path can say
        subprocess.run(["chmod", "-R", "u+rwx", "--", str(folder)], capture_output=True, cwd="/")
        removed = subprocess.run(["rm", "-rf", "--", str(folder)], capture_output=True, cwd="/")
        if removed.returncode:
            said = cause.of_text(removed.stderr.decode(errors="replace"))
            raise SandboxError(f"{folder} cannot be removed ({said}): remove it by hand") from None
