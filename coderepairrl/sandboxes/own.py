"""The step between a runtime's namespaces and an agent's command: one more user namespace, whose limits hold for the
agent's below it.

What is bounded here the kernel counts by itself, in each namespace: how many user namespaces there may be (the agent's,
and none that it makes: in one of its own it could mount memory that nobody counts), System V memory, queues and
semaphores, which need no process that holds them. Then /proc/sys is read-only: outside, the agent is the user that
these limits belong to.
"""

import os
import resource
import shlex
import subprocess

from coderepairrl.errors import SandboxError
from coderepairrl.processes import cause
from coderepairrl.sandboxes.protocol import SandboxConfig

AGENT = 1000  # who a command is, inside
NOBODY = 65534  # who root becomes first: the kernel exempts root from process limits in any namespace
PAGE_BYTES = 4096
MESSAGE_QUEUES = 256  # of 16 KiB
SEMAPHORES = "250 32000 32 128"  # in a set, in all, operations in a call, sets: as the kernel had it for decades, 2 MiB
MADE = "made"


def steps(config: SandboxConfig) -> list[str]:
    """Of a shell that is root in a new user, mount and IPC namespace."""
    numbers = {
        "user/max_user_namespaces": "1",
        "kernel/shmall": str((config.memory_mib << 20) // PAGE_BYTES),
        "kernel/msgmni": str(MESSAGE_QUEUES),
        "kernel/sem": SEMAPHORES,
    }
    written = [f"echo {shlex.quote(number)} > /proc/sys/{name}" for name, number in numbers.items()]
    return [*written, "mount --bind /proc/sys /proc/sys", "mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys"]


def shell(unshare: str, script_steps: list[str], workdir: str) -> list[str]:
    """The namespaces, and in them a shell that takes the steps one after the other, says that it is through them, and
    becomes the words that follow.

    It says so to its input, a pipe of this program's (`was_made`), which it then gives up: what a command prints and
    how it ends it may choose, so neither tells a sandbox that broke."""
    script = " && ".join([*script_steps, 'cd "$0"', f"echo {MADE} >&0", "exec </dev/null", 'exec "$@"'])
    return [unshare, "--user", "--map-root-user", "--mount", "--ipc", "sh", "-c", script, workdir]


def was_made(read_end: int) -> bool:
    """Whether a command that has ended came to its own first step."""
    os.set_blocking(read_end, False)
    try:
        return os.read(read_end, 64).strip() == MADE.encode()
    except BlockingIOError:  # something of it still has the other end
        return False


def drop(setpriv: str) -> list[str]:
    """From root to `nobody`."""
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def agent(unshare: str) -> list[str]:
    """Into the agent's own user namespace, without any capability."""
    return [unshare, "--user", f"--map-user={AGENT}", f"--map-group={AGENT}"]


def limits(config: SandboxConfig, prlimit: str = "prlimit") -> list[str]:
    """Run inside, after the namespaces: the kernel counts processes per user namespace, so siblings do not add up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = config.descriptors if most == resource.RLIM_INFINITY else min(config.descriptors, most)
    return [
        prlimit,
        f"--nproc={config.processes}",
        f"--data={config.memory_mib << 20}",
        f"--fsize={config.file_size_mib << 20}",
        f"--nofile={descriptors}",
        "--core=0",
        "--",
    ]


def check_user(runtime: str, argv: list[str], environment: dict[str, str], install: str, advice: str) -> None:
    """Raises SandboxError unless a command behind `argv` is user 1000. `install` and `advice`: remedies where it
    doesn't start, or is another."""
    try:
        done = subprocess.run(
            [*argv, "id", "-u"],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{runtime} does not run ({error}): {install}") from error
    if done.stdout.strip() != str(AGENT):
        raise SandboxError(f"{runtime} cannot make a sandbox ({cause.of_text(done.stdout + done.stderr)}): {advice}")
