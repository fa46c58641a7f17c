"""Runs a command that ends with this process, however this process ends, and leaves no process of it behind.

    python keeper.py COMMAND ...

For `apptainer`: the kernel's parent-death signal (starting.ends_with_parent) does not get through it, because it
changes its credentials, and the process that mounts the image for a user who isn't root stays when its apptainer is
killed. So there are two processes. The guard is the one that the caller sees: it passes signals on and ends as the
command ended. The keeper, in a session of its own, is the parent of the command and, as subreaper, of all that the
command orphans; when the guard is gone, it kills them. (Sandboxes start too many containers for that: reaper.py.)
"""

import ctypes
import os
import select
import signal
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_CHILD_SUBREAPER = 36


def guard(command: list[str]) -> int:
    """The command's exit code, 128 + n when signal n ended it."""
    alive, held = os.pipe()  # `held` is the guard's alone: the kernel closes it when the guard ends
    started, ready = os.pipe()
    keeper = os.fork()
    if not keeper:
        os.close(held)
        os._exit(keep(command, alive, ready))
    os.close(alive)
    os.close(ready)
    if pid := os.read(started, 32):  # none: the command could not be started
        try:
            handle = os.pidfd_open(int(pid))
            _on_signals(lambda number, _: _send(handle, number))
        except ProcessLookupError:
            pass  # it has ended already: there is nothing to pass on
    return _code(os.waitpid(keeper, 0)[1])


def keep(command: list[str], alive: int, ready: int) -> int:
    os.setsid()  # what is sent to the guard's group comes over the guard, once
    _on_signals(lambda *_: None)  # not ignored: that would be inherited
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        print(f"error: no subreaper: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 125
    try:
        pid = os.posix_spawnp(command[0], command, os.environ)
    except OSError as error:
        print(f"error: {command[0]} could not be started: {error.strerror}", file=sys.stderr)
        return 127
    handle = os.pidfd_open(pid)
    os.write(ready, str(pid).encode())
    os.close(ready)
    poll = select.poll()
    poll.register(alive, select.POLLHUP)
    poll.register(handle, select.POLLIN)
    if any(source == alive for source, _ in poll.poll()):
        _send(handle, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    _end_orphans()
    return _code(status)


def _end_orphans() -> None:
    """Returns when this process has no children any more."""
    while True:
        with open("/proc/thread-self/children") as file:
            for pid in file.read().split():
                os.kill(int(pid), signal.SIGKILL)  # ours until it is waited for: the id can't be another's
        try:
            os.wait()
        except ChildProcessError:
            return


def _on_signals(handler) -> None:
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:  # the caller wants it to have no effect
            signal.signal(number, handler)


def _send(handle: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return  # it has just ended: that is noticed elsewhere


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
