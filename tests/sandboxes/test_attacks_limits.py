"""Memory and space that a command holds where its limits might not see it. Each way takes 600 MiB, of a limit of 128 or
64, and would keep it."""

import platform
import sys

import pytest
from sandbox_helpers import ISOLATED

TAKEN_MIB, KEPT_S = 600, 20
HEAD = f"""
import array, ctypes, glob, mmap, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
M, P = 1 << 20, 4096
def touch(m):
    for at in range(0, len(m), P): m[at] = 1
def keep():
    print("taken", flush=True); time.sleep({KEPT_S}); print("kept", flush=True)
def cut(m, left):
    at = ctypes.addressof(ctypes.c_char.from_buffer(m))
    assert not libc.munmap(ctypes.c_void_p(at + left), ctypes.c_size_t(len(m) - left))
"""
MEMORY = {
    "private": f"b = bytearray({TAKEN_MIB} * M); keep()",
    "private, in many processes": f"for _ in range(3): os.fork()\nb = bytearray({TAKEN_MIB} // 8 * M); keep()",
    "shared": f"m = mmap.mmap(-1, {TAKEN_MIB} * M); touch(m); keep()",
    "shared, all but a page unmapped": f"m = mmap.mmap(-1, {TAKEN_MIB} * M); touch(m); cut(m, P); keep()",
    "shared, in no table": f"m = mmap.mmap(-1, {TAKEN_MIB} * M); touch(m); m.madvise(mmap.MADV_DONTNEED); keep()",
    "shared, in many pieces": """
all = [mmap.mmap(-1, 10 * M) for _ in range(60)]
for m in all: touch(m); cut(m, P)
keep()""",
    "shared, of a child that has changed its session": f"""
m = mmap.mmap(-1, {TAKEN_MIB} * M)
if os.fork() == 0: os.setsid(); touch(m); cut(m, P); keep()
else: keep()""",
    "shared, of /dev/zero": f"m = mmap.mmap(os.open('/dev/zero', os.O_RDWR), {TAKEN_MIB} * M); touch(m); keep()",
    "files without a name": """
fds = [os.memfd_create('x') for _ in range(20)]
for fd in fds: os.write(fd, bytes(30 * M))
keep()""",
    "secret files": """
fd = libc.syscall(447, 0); assert fd >= 0
os.ftruncate(fd, 60 * M); m = mmap.mmap(fd, 60 * M); touch(m); keep()""",
    "System V, attached to nothing": f"""
for _ in range({TAKEN_MIB} // 20):
    one = libc.shmget(0, ctypes.c_size_t(20 * M), 0o1600); assert one >= 0
    libc.shmat.restype = ctypes.c_void_p; at = libc.shmat(one, None, 0)
    ctypes.memset(at, 1, 20 * M); libc.shmdt(ctypes.c_void_p(at))
keep()""",
    "messages in queues": """
class Message(ctypes.Structure): _fields_ = [("kind", ctypes.c_long), ("text", ctypes.c_char * 8192)]
for _ in range(30000):
    queue = libc.msgget(0, 0o1600); assert queue >= 0
    for _ in range(2): libc.msgsnd(queue, ctypes.byref(Message(1)), 8192, 0o4000)
keep()""",
    "semaphores": "for _ in range(30000): assert libc.semget(0, 32000, 0o1600) >= 0\nkeep()",
    "folders in memory of its own": """
fill = "mount -t tmpfs -o size=1g t /mnt && head -c 600M /dev/zero > /mnt/x"
assert not os.system(f"unshare -Urm sh -c '{fill}'"); keep()""",
    "user namespaces": "assert not libc.unshare(0x10000000); keep()",
    "empty files in memory": "for n in range(700_000): os.close(os.open(f'/tmp/{n}', os.O_CREAT))\nkeep()",
    "page tables": """
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, ctypes.c_size_t(1 << 40), 1, 0x4022, -1, 0)
for n in range(1 << 18): ctypes.string_at(at + (n << 21), 1)
keep()""",
    "sockets full of bytes": """
import resource
for _ in range(6): os.fork()
all = []
try:
    while True:
        pair = socket.socketpair(); all.append(pair)
        for one in pair:
            one.setblocking(False)
            try:
                while True: one.send(bytes(100_000))
            except BlockingIOError: pass
except OSError: keep()""",
}
DISK = {
    "files": "for n in range(20): open(f'f{n}', 'wb').write(bytes(30 * M))\nkeep()",
    "removed files": """
all = [open(f'f{n}', 'wb', 0) for n in range(20)]
for n, f in enumerate(all): os.unlink(f'f{n}'); f.write(bytes(30 * M))
keep()""",
    "removed files that are mapped": """
all = []
for n in range(20):
    with open('f', 'w+b', 0) as f: f.truncate(30 * M); all.append(mmap.mmap(f.fileno(), 30 * M)); os.unlink('f')
for m in all: touch(m)
keep()""",
    "removed files, all but a page unmapped": """
all = []
for n in range(20):
    with open('f', 'w+b', 0) as f:
        f.write(bytes(30 * M)); all.append(libc.mmap(None, P, 1, 2, f.fileno(), 0)); os.unlink('f')
keep()""",
    "removed files that are on their way in a socket": """
ours, theirs = socket.socketpair()
for n in range(20):
    with open('f', 'w+b', 0) as f: f.write(bytes(30 * M)); os.unlink('f'); socket.send_fds(ours, [b'x'], [f.fileno()])
keep()""",
    "the same, in a socket that is on its way": """
ours, theirs = socket.socketpair()
for n in range(20):
    with open('f', 'w+b', 0) as f: f.write(bytes(30 * M)); os.unlink('f'); socket.send_fds(ours, [b'x'], [f.fileno()])
left, right = socket.socketpair()
socket.send_fds(left, [b'x'], [ours.fileno(), theirs.fileno()]); ours.close(); theirs.close()
keep()""",
    "files below folders deeper than a path": """
for n in range(300): os.mkdir('d' * 200); os.chdir('d' * 200)
for n in range(20): open(f'f{n}', 'wb').write(bytes(30 * M))
keep()""",
    "removed files, beside folders that are slow to walk": """
for n in range(10_000): os.mkdir(f'd{n}')
time.sleep(1)
all = [open(f'f{n}', 'wb', 0) for n in range(20)]
for n, f in enumerate(all): os.unlink(f'f{n}'); f.write(bytes(30 * M))
keep()""",
    "empty files": "for n in range(200_000): os.close(os.open(f'{n}', os.O_CREAT))\nkeep()",
}
LIMITED = {"memory": dict(memory_mib=128, tmp_mib=512), "disk": dict(disk_mib=64)}


# over a template the same commands take as long again, and what counts them is the same
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.cluster) if kind == "overlay" else kind for kind in ISOLATED]
)


def attack(use, kind, code, **limits):
    return use(kind, lambda sandbox: sandbox.run([sys.executable, "-c", HEAD + code], timeout_s=300), **limits)


@kinds
@pytest.mark.parametrize("way", MEMORY)
def test_memory_is_counted_wherever_it_is(use, kind, way):
    if way == "secret files" and platform.machine() != "x86_64":
        pytest.skip("its number is x86-64's")
    result = attack(use, kind, MEMORY[way], **LIMITED["memory"])
    assert "kept" not in result.output and result.exit_code in (1, 137), result
    if result.exit_code == 1:
        assert "taken" not in result.output


@kinds
@pytest.mark.parametrize("way", DISK)
def test_space_is_counted_wherever_it_is(use, kind, way):
    result = attack(use, kind, DISK[way], **LIMITED["disk"])
    assert result.exit_code == 137 and "disk limit of 64 MiB" in result.output, result


HONEST = {
    "shared by many processes, once": """
m = mmap.mmap(-1, 60 * M); touch(m)
for _ in range(3): os.fork()
for at in range(0, 60 * M, P): m[at]
time.sleep(2)""",
    "of a parent, which its forks share": "b = b'x' * (60 * M)\nfor _ in range(3): os.fork()\ntime.sleep(2)",
    "/tmp and shared memory, within their own size": """
for n in range(4): open(f'/tmp/{n}', 'wb').write(bytes(30 * M))
time.sleep(2)""",
    "written again, not held": """
for n in range(5): open('f', 'wb').write(bytes(20 * M)); open('f', 'rb').read(); os.unlink('f'); time.sleep(0.4)""",
    "a file on its way": """
a, b = socket.socketpair()
for n in range(30): socket.send_fds(a, [b'x'], [1]); socket.recv_fds(b, 1, 1)[1] and time.sleep(0.05)""",
    "many sockets": "all = [socket.socketpair() for _ in range(100)]; time.sleep(2)",
    "System V": """
assert libc.shmget(0, ctypes.c_size_t(20 * M), 0o1600) >= 0
assert libc.semget(0, 17, 0o1600) >= 0 and libc.msgget(0, 0o1600) >= 0""",
}


@kinds
@pytest.mark.parametrize("way", HONEST)
def test_what_is_within_the_limits_ends_by_itself(use, kind, way):
    result = attack(use, kind, HONEST[way], memory_mib=128, disk_mib=64)
    assert result.exit_code == 0, result


@kinds
def test_descriptors_are_bounded(use, kind):
    code = "n = 0\ntry:\n    while True: os.dup(0); n += 1\nexcept OSError as error: print(n, error.errno)\n"
    result = attack(use, kind, code, descriptors=100)
    assert result.output == "97 24\n", result
