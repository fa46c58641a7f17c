"""Ways by which the hidden tests left a grading run for a sandbox that still works, or for a later one (d02, d04)."""

import asyncio
import ctypes
import platform
import sys
from dataclasses import replace

import pytest
from judge_helpers import PYTEST_TASK, source
from sandbox_helpers import isolated, sandbox_config

from coderepairrl.rewards import Grader
from coderepairrl.sandboxes import start_sandbox

SECRET = "a line of the hidden tests"
TASK = replace(
    PYTEST_TASK, hidden_tests={path: f"{text}\n# {SECRET}\n" for path, text in PYTEST_TASK.hidden_tests.items()}
)
# one file of the system for each byte, one for the end, one between two bytes (equal events in a row are one)
FILES = """
import os, sys
FILES = sorted(os.path.join(where, name) for where, _, names in os.walk(os.path.dirname(os.__file__)) for name in names
               if name.endswith(".py") and not os.path.islink(os.path.join(where, name)))[100:358]
assert len(FILES) == 258
"""
SEND = (
    FILES
    + """
for byte in open(sys.argv[-2], "rb").read():
    for place in (byte, 257):
        os.close(os.open(FILES[place], os.O_RDONLY))
os.close(os.open(FILES[256], os.O_RDONLY))
"""
)
INOTIFY = (
    FILES
    + """
import ctypes, select, struct
libc = ctypes.CDLL(None, use_errno=True)
told = libc.NEW
watched = {libc.inotify_add_watch(told, path.encode(), 0x20): place for place, path in enumerate(FILES)}
open("/repo/ready", "w").close()
got, end = bytearray(), told < 0
while not end and select.select([told], [], [], 30)[0]:
    data = os.read(told, 65536)
    while data:
        watch, _, _, more = struct.unpack("iIII", data[:16])
        data, place = data[16 + more:], watched.get(watch)
        end = end or place == 256
        if place is not None and place < 256:
            got.append(place)
print("told" if told >= 0 else "refused", bytes(got).decode(errors="replace"))
"""
)
LISTEN = {
    "inotify_init1": INOTIFY.replace("NEW", "inotify_init1(0)"),
    "inotify_init": INOTIFY.replace("NEW", "inotify_init()"),
    "inotify_init1 by number": INOTIFY.replace("NEW", "syscall(294, 0)"),
}
TOLD = {  # ways to be told of what others open: each is refused
    "fanotify": "libc.syscall(300, 0x200, 0)",
    "fcntl F_NOTIFY": "libc.fcntl(os.open('/usr/lib', os.O_RDONLY), 1026, 1)",
    "fcntl F_NOTIFY by number, with more in the argument's upper half": (
        "libc.syscall(72, os.open('/usr/lib', os.O_RDONLY), ctypes.c_long(1026 | 1 << 40), 1)"
    ),
}
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")


@pytest.mark.parametrize("name", LISTEN)
def test_d02_no_sandbox_is_told_what_another_opens(config, name):
    async def main():
        async with start_sandbox(config, TASK) as sibling:
            listening = asyncio.create_task(sibling.run([sys.executable, "-c", LISTEN[name]], timeout_s=60))
            while not (sibling.root / "ready").exists() and not listening.done():
                await asyncio.sleep(0.05)
            await Grader(config).grade(TASK, source(SEND))
            return (await listening).output

    said = asyncio.run(main())
    assert said.startswith("refused") and SECRET not in said, said


@isolated
@pytest.mark.parametrize("name", [*LISTEN, *TOLD])
def test_d02_all_that_tells_is_refused(tmp_path, kind, name):
    ways = TOLD | {"inotify_init1": "libc.inotify_init1(0)", "inotify_init": "libc.inotify_init()"}
    way = ways.get(name, "libc.syscall(294, 0)")
    code = f"import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); print({way}, ctypes.get_errno())"

    async def main():
        async with start_sandbox(sandbox_config(kind, tmp_path), TASK) as sandbox:
            return (await sandbox.run([sys.executable, "-c", code])).output

    # Apptainer answers EPERM whatever its profile says
    assert asyncio.run(main()).split() == ["-1", "1" if kind == "apptainer" else "38"]


def test_d02_honest_use_of_fcntl_goes_on(config):
    code = (
        "import fcntl; file = open('x', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(fcntl.fcntl(file, fcntl.F_GETFD))"
    )

    async def main():
        async with start_sandbox(config, TASK) as sandbox:
            return (await sandbox.run([sys.executable, "-c", code])).output

    assert asyncio.run(main()).strip() == "1"


KEEP = """
import ctypes, sys
text = open(sys.argv[-2], "rb").read()
for ring in (-3, -4, -5):
    ctypes.CDLL(None).syscall(248, b"user", b"shown-attack", text, len(text), ring)
"""
READ = """
import ctypes
libc, room = ctypes.CDLL(None), ctypes.create_string_buffer(65536)
for ring in (-3, -4, -5):
    size = libc.syscall(250, 11, libc.syscall(250, 10, ring, b"user", b"shown-attack", 0), room, 65536)
    print(size, room.raw[:max(size, 0)].decode())
"""


def test_d04_no_key_outlives_a_sandbox(config):
    """In a session's keyring, as after a login; this process gets one of its own."""
    assert ctypes.CDLL(None).syscall(250, 1, b"shown-attack") > 0

    async def main():
        await Grader(config).grade(TASK, source(KEEP))
        async with start_sandbox(config, TASK) as later:
            return (await later.run([sys.executable, "-c", READ])).output

    said = asyncio.run(main())
    assert said.split() == ["-1"] * 3, said
