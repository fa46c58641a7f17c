"""One process that has imported an agent; each task is a fork of it, which enters the task's sandbox before it does
anything.

    python fork_server.py SOCKET DRIVER.py FILTER

DRIVER has warm() and main(path of a job), FILTER is a file with seccomp's program.

Imports are then paid for once, and their memory is shared. The server never touches a task: it accepts a connection and
forks. The fork takes from fork_client.py, which runs in the sandbox, descriptors of the sandbox's namespaces and of its
root; enters them, the outermost first; becomes the sandbox's user, without capabilities, under the client's limits and
the sandboxes' filter of system calls; forks once more, so as to be inside the process namespace, where the sandbox's
end is its end too; and only then reads the job. It is no process that the sandbox's own could look into or write
through (not dumpable).

A client gets no more than it has: it can only name namespaces that it holds, and the server's own are refused. Until a
fork has entered a sandbox it is outside of that one's limits: each sandbox may have a few, for a short time. Ends when
its standard input does. Only Linux, and only the standard library besides the agent's.
"""

import array
import contextlib
import ctypes
import fcntl
import gc
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback

# name -> CLONE_NEW..., linux/sched.h
NAMESPACES = {"user": 1 << 28, "mnt": 1 << 17, "pid": 1 << 29, "net": 1 << 30, "ipc": 1 << 27, "uts": 1 << 26}
FDS = (*NAMESPACES, "root", "stdout", "stderr")  # what a client sends, in this order
LIMITS = ("RLIMIT_DATA", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE")
LONGEST_REQUEST = 1 << 20  # bytes
REQUEST_S = 30.0  # how long a client may take to send it, all of it
FORKS = 4  # that one sandbox may have at once: it needs one, and another while that ends
BROKEN = 70  # exit code of a task that could not be started, which says nothing about the agent
NS_GET_USERNS, NS_GET_PARENT = 0xB701, 0xB702  # ioctls of namespaces, linux/nsfs.h
# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION = 0x20080522
libc = ctypes.CDLL(None, use_errno=True)


class RefusedRequest(Exception):
    """The client's request is none, or names what it may not."""


def call(name: str, *arguments: int | bytes | ctypes.c_void_p) -> None:
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def user_namespaces(fd: int, own: tuple[int, int]) -> list[int]:
    """From the outermost below our own to `fd`'s."""
    chain = [fd]
    while (parent := fcntl.ioctl(chain[0], NS_GET_PARENT)) >= 0 and identity(parent) != own:
        chain.insert(0, parent)
    return chain


def enter(fds: dict[str, int], uid: int, gid: int) -> None:
    """Into all namespaces of the client. `uid`, `gid`: who it is, as seen from here."""
    here = {name: os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in NAMESPACES}
    own = identity(here["user"])
    if any(identity(fds[name]) == identity(fd) for name, fd in here.items()) or uid == 0:
        raise RefusedRequest("the client is in no sandbox")
    owners = {name: identity(fcntl.ioctl(fds[name], NS_GET_USERNS)) for name in NAMESPACES if name != "user"}
    chain = user_namespaces(fds["user"], own)
    if not {own, *map(identity, chain)}.issuperset(owners.values()):
        raise RefusedRequest("a namespace is not of the client's sandbox: it would not be entered")
    for name in [name for name, owner in owners.items() if owner == own]:  # of a sandbox that root made
        call("setns", fds[name], NAMESPACES[name])  # with the kind: another in its place would leave us in our own
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    elif os.getuid() != uid:
        raise RefusedRequest("the client is another user")
    for user in chain:
        call("setns", user, NAMESPACES["user"])
        for name in [name for name, owner in owners.items() if owner == identity(user)]:
            call("setns", fds[name], NAMESPACES[name])
    os.fchdir(fds["root"])
    os.chroot(".")


def drop(rules: bytes) -> None:
    """All capabilities, the way back to any, and the system calls that no command of a sandbox has."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # those above the kernel's last are refused
    header, data = struct.pack("II", CAPABILITY_VERSION, 0), bytes(24)
    call("capset", header, data)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    text = ctypes.create_string_buffer(rules, len(rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rules) // 8, ctypes.addressof(text)))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(program)), 0, 0)


def receive(connection: socket.socket) -> tuple[dict, dict[str, int]]:
    """(request, descriptors by name). The length and the descriptors come first."""
    deadline = time.monotonic() + REQUEST_S
    connection.settimeout(REQUEST_S)
    size = array.array("i").itemsize
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(16 * size))
    got = [
        fd
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for fd in array.array("i", data[: len(data) - len(data) % size])
    ]
    length = int.from_bytes(head, "little")
    if len(got) != len(FDS) or len(head) != 4 or not 0 < length <= LONGEST_REQUEST:
        raise RefusedRequest("this is no request of fork_client.py")
    text = b""
    while len(text) < length:
        if (left_s := deadline - time.monotonic()) <= 0:
            raise RefusedRequest("the request takes too long")
        connection.settimeout(left_s)
        if not (part := connection.recv(length - len(text))):
            raise RefusedRequest("the request is cut off")
        text += part
    connection.settimeout(None)
    return json.loads(text), dict(zip(FDS, got))


def handle(connection: socket.socket, driver, rules: bytes) -> None:
    """One task, in a process of its own; the client gets one line about its end."""
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    request, fds = receive(connection)
    client, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    enter(fds, uid, gid)
    for name in LIMITS:  # asked of the kernel, not of the client
        resource.setrlimit(getattr(resource, name), resource.prlimit(client, getattr(resource, name)))
    drop(rules)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        connection.close()
        work(request, fds, driver)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    answer = {
        "code": code if code >= 0 else 128 - code,
        "cpu_s": round(used.ru_utime + used.ru_stime, 4),
        "peak_mib": used.ru_maxrss >> 10,
    }
    connection.sendall(json.dumps(answer).encode() + b"\n")


def work(request: dict, fds: dict[str, int], driver) -> None:
    """The task itself. Never returns."""
    code = 1
    try:
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, number in ((null, 0), (fds["stdout"], 1), (fds["stderr"], 2)):
            os.dup2(fd, number)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(request["variables"])
        os.umask(0o022)
        driver.main(request["job"])
        code = 0
    except SystemExit as error:
        code = 0 if error.code is None else 1
        if isinstance(error.code, int):
            code = error.code
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # the fork ends here, whatever happened; the client gets the code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def sandbox_of(connection: socket.socket) -> int:
    """A number of the client's sandbox: its network namespace, of which it can make no other. Raises RefusedRequest
    of a client that has gone."""
    client, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return os.stat(f"/proc/{client}/ns/net").st_ino
    except OSError as error:
        raise RefusedRequest(f"the client is not there ({error.strerror})") from None


def refuse(connection: socket.socket, why: str) -> None:
    """The client's trouble, not that of those that run; and no client makes the server wait."""
    connection.setblocking(False)
    with connection, contextlib.suppress(OSError):
        connection.sendall(json.dumps({"code": BROKEN, "error": why}).encode() + b"\n")


def fork_for(connection: socket.socket, server: socket.socket, driver, rules: bytes, forks: dict[int, int]) -> None:
    """`forks`: process -> sandbox, of all that live."""
    try:
        sandbox = sandbox_of(connection)
        if list(forks.values()).count(sandbox) >= FORKS:
            raise RefusedRequest(f"the sandbox has {FORKS} forks already")
        pid = os.fork()
    except (RefusedRequest, OSError) as error:  # as many processes or as much memory as there may be
        return refuse(connection, f"no fork: {error}")
    if pid:
        forks[pid] = sandbox
        connection.close()
        return
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        server.close()
        handle(connection, driver, rules)
        code = 0
    except BaseException as error:
        connection.sendall(json.dumps({"code": BROKEN, "error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
    finally:
        os._exit(code)


def reap(forks: dict[int, int]) -> None:
    """Forgets all forks that have ended."""
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            forks.pop(pid, None)


def main(path: str, driver_path: str, filter_path: str) -> None:
    with open(filter_path, "rb") as file:
        rules = file.read()
    spec = importlib.util.spec_from_file_location("driver", driver_path)
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    driver.warm()
    gc.collect()
    gc.freeze()  # so that a fork's collections leave the shared pages alone
    forks: dict[int, int] = {}
    woken, waker = os.pipe()  # by a fork's end
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        os.chmod(path, 0o666)  # its folder is shown to those sandboxes only that have a task for it
        server.listen(512)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([server, sys.stdin, woken], [], [])
            if woken in readable:
                os.read(woken, 4096)
            reap(forks)
            if sys.stdin in readable:  # nothing is ever sent: it is closed
                return
            if server in readable:
                fork_for(server.accept()[0], server, driver, rules, forks)


if __name__ == "__main__":
    main(*sys.argv[1:])
