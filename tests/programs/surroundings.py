"""Run in a sandbox: prints what a suite may ask of the machine, as JSON."""

import contextlib
import errno
import getpass
import grp
import json
import os
import pty
import pwd
import socket
import stat
import subprocess
import sys
import tempfile


def terminal():
    master, slave = pty.openpty()
    os.write(slave, b"x")
    return (
        os.isatty(slave),
        os.ttyname(slave).startswith("/dev/pts/"),
        os.path.exists(os.ttyname(slave)),
        os.read(master, 9).decode(),
    )


def controlling():
    done = subprocess.run(
        ["script", "-qec", "tty; echo > /dev/tty", "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.startswith("/dev/pts/")


def spawned():
    pid, master = pty.fork()
    if not pid:
        os.execvp("tty", ["tty"])
    said = os.read(master, 99)
    return said.startswith(b"/dev/pts/"), os.waitpid(pid, 0)[1]


def folder(path):
    with tempfile.NamedTemporaryFile(dir=path) as file:
        file.write(b"x" * (8 << 20))
        file.flush()
        found = os.statvfs(path)
        return oct(os.stat(path).st_mode & 0o7777), found.f_blocks * found.f_frsize >> 20, os.path.exists(file.name)


def device(path):
    found = os.stat(path)
    return stat.S_ISCHR(found.st_mode), os.major(found.st_rdev), os.minor(found.st_rdev), oct(found.st_mode & 0o777)


def full():
    try:
        with open("/dev/full", "wb", 0) as file:
            file.write(b"x")
    except OSError as error:
        return errno.errorcode[error.errno]


def descriptors():
    read, write = os.pipe()
    with contextlib.ExitStack() as stack:
        for fd in (read, write):
            stack.callback(os.close, fd)
        os.write(write, b"through\n")
        with open(f"/dev/fd/{read}", "rb", 0) as file:
            here = file.read(99).decode()
    shell = subprocess.run(
        ["bash", "-c", "cat <(echo substituted); echo out > /dev/stdout; cat /dev/stdin"],
        input="in\n",
        capture_output=True,
        text=True,
    )
    return here, shell.stdout, shell.returncode, sorted({"0", "1", "2"} & set(os.listdir("/dev/fd")))


def own():
    words = open("/proc/self/cmdline").read().split("\0")
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    return (
        words[1:2],
        os.readlink("/proc/self/exe") == os.path.realpath(sys.executable),
        os.readlink("/proc/self/cwd") == os.getcwd(),
        int(os.readlink("/proc/self")) == os.getpid(),
        status["Uid"].split(),
        status["CapEff"].strip(),
        status["NoNewPrivs"].strip(),
    )


def users():
    return (
        pwd.getpwuid(os.getuid()).pw_name,
        grp.getgrgid(os.getgid()).gr_name,
        getpass.getuser(),
        os.path.expanduser("~"),
    )


def shared_memory():
    from multiprocessing import Lock, shared_memory

    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    block.buf[0] = 7
    with Lock():
        return block.buf[0], block.unlink(), block.close()


FACTS = {
    "services": lambda: (socket.getservbyname("http"), socket.getservbyport(22)),
    "protocols": lambda: socket.getprotobyname("tcp"),
    "localhost": lambda: socket.gethostbyname("localhost"),
    "hostname": lambda: (socket.gethostname(), socket.gethostbyname(socket.gethostname())),
    "terminal": terminal,
    "controlling": controlling,
    "spawned": spawned,
    "descriptors": descriptors,
    "own": own,
    "users": users,
    "full": full,
    "shared_memory": shared_memory,
    **{path: lambda path=path: folder(path) for path in ("/tmp", "/var/tmp", "/dev/shm")},
    **{
        path: lambda path=path: device(path)
        for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx")
    },
    "home": lambda: (os.access(os.path.expanduser("~"), os.W_OK), os.environ["HOME"]),
    "outside": lambda: [
        path
        for path in ("/new", "/dev/new", "/etc/new", "/var/new", "/usr/new")
        if os.access(os.path.dirname(path), os.W_OK)
    ],
}
found = {}
for name, look in FACTS.items():
    try:
        found[name] = look()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
