"""What suites expect of a machine beside the checkout: the same in every kind of sandbox, one table."""
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
from sandbox_helpers import ISOLATED, checkouts, isolated, make_task, use  # noqa: F401 - some are fixtures

from coderepairrl.sandboxes.interpreter import interpreter

LOOK = r"""
import contextlib, errno, json, os, pty, pwd, getpass, grp, socket, stat, subprocess, sys, tempfile

def terminal():
    master, slave = pty.openpty()
    os.write(slave, b"x")
    return os.isatty(slave), os.ttyname(slave).startswith("/dev/pts/"), os.path.exists(os.ttyname(slave)), os.read(master, 9).decode()

def controlling():
    done = subprocess.run(["script", "-qec", "tty; echo > /dev/tty", "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
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
    shell = subprocess.run(["bash", "-c", "cat <(echo substituted); echo out > /dev/stdout; cat /dev/stdin"], input="in\n", capture_output=True, text=True)
    return here, shell.stdout, shell.returncode, sorted({"0", "1", "2"} & set(os.listdir("/dev/fd")))

def own():
    words = open("/proc/self/cmdline").read().split("\0")
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    return words[1:2], os.readlink("/proc/self/exe") == os.path.realpath(sys.executable), os.readlink("/proc/self/cwd") == os.getcwd(), \
        int(os.readlink("/proc/self")) == os.getpid(), status["Uid"].split(), status["CapEff"].strip(), status["NoNewPrivs"].strip()

def users():
    return pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name, getpass.getuser(), os.path.expanduser("~")

def shared_memory():
    from multiprocessing import Lock, Queue, shared_memory
    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    block.buf[0] = 7
    with Lock():
        return block.buf[0], block.unlink(), block.close()

FACTS = {
    "services": lambda: (socket.getservbyname("http"), socket.getservbyport(22)), "protocols": lambda: socket.getprotobyname("tcp"),
    "localhost": lambda: socket.gethostbyname("localhost"), "hostname": lambda: (socket.gethostname(), socket.gethostbyname(socket.gethostname())),
    "terminal": terminal, "controlling": controlling, "spawned": spawned, "descriptors": descriptors, "own": own, "users": users, "full": full,
    "shared_memory": shared_memory, **{path: lambda path=path: folder(path) for path in ("/tmp", "/var/tmp", "/dev/shm")},
    **{path: lambda path=path: device(path) for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx")},
    "outside": lambda: [path for path in ("/new", "/dev/new", "/etc/new", "/var/new", "/usr/new") if os.access(os.path.dirname(path), os.W_OK)],
}
found = {}
for name, look in FACTS.items():
    try:
        found[name] = look()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
CHARACTER = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0), "ptmx": (5, 2)}
EXPECTED = {
    "services": [80, "ssh"], "protocols": 6, "localhost": "127.0.0.1", "hostname": ["sandbox", "127.0.0.1"],
    "terminal": [True, True, True, "x"], "controlling": [0, True], "spawned": [True, 0], "full": "ENOSPC", "shared_memory": [7, None, None],
    "descriptors": ["through\n", "substituted\nout\nin\n", 0, ["0", "1", "2"]],
    "own": [["look.py"], True, True, True, ["1000"] * 4, "0" * 16, "1"], "users": ["agent", "agent", "agent", "/tmp"], "outside": [],
    **{path: ["0o1777", 20, True] for path in ("/tmp", "/var/tmp", "/dev/shm")},
    **{f"/dev/{name}": [True, *numbers, "0o666"] for name, numbers in CHARACTER.items()},
}


@isolated
def test_a_suite_finds_the_machine_that_it_expects(use, kind):
    for name in ("services", "protocols"):
        if not os.path.exists(f"/etc/{name}"):
            pytest.skip(f"this machine has no /etc/{name}")
    done = use(kind, lambda sandbox: sandbox.run([sys.executable, "look.py"]), make_task({"look.py": LOOK}), tmp_mib=20)
    found = json.loads(done.output)
    assert {name: found[name] for name in EXPECTED if found[name] != EXPECTED[name]} == {}


@isolated
@pytest.mark.parametrize("parent", ["/tmp", "/var/tmp"])
def test_an_interpreter_below_a_folder_in_memory_is_seen(use, kind, parent, request):
    """An environment's cache may lie there."""
    folder = f"{parent}/crl-python-{os.getpid()}"
    request.addfinalizer(lambda: shutil.rmtree(folder))
    os.makedirs(f"{folder}/bin")
    shutil.copy(f"{sys.prefix}/pyvenv.cfg", folder)
    os.symlink(os.path.realpath(sys.executable), f"{folder}/bin/python")
    assert folder in interpreter(f"{folder}/bin/python").folders
    task = make_task()
    task = replace(task, environment=replace(task.environment, python=f"{folder}/bin/python"))
    done = use(kind, lambda sandbox: sandbox.run("{0}/bin/python -c 'import sys; print(sys.prefix)'; touch {1}/x && ls {1}".format(folder, parent)), task)
    assert done.output.split() == [folder, os.path.basename(folder), "x"]
