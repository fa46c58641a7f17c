"""No sandbox leaves anything in the kernel's keyrings, which all of a session share."""

import asyncio
import subprocess
import sys

import pytest
from sandbox_helpers import isolated, make_task, sandbox_config

from coderepairrl.sandboxes import seccomp, start_sandbox

CALLS = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
calls = (248, (b"user", b"red", b"text", 4, {ring})), (249, (b"user", b"red", None, {ring})), (250, (0, {ring}, 1))
for number, words in calls:
    found = libc.syscall(number, *words)
    print(number, found, errno.errorcode.get(ctypes.get_errno()))
"""


@pytest.mark.skipif(
    sys.maxsize < 2**32 or "x86_64" not in subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout,
    reason="numbers of x86-64",
)
@isolated
@pytest.mark.parametrize("ring", [-1, -2, -3, -4, -5], ids=["thread", "process", "session", "user", "user's session"])
def test_the_keyrings_are_not_there(tmp_path, kind, ring):
    async def main():
        async with start_sandbox(sandbox_config(kind, tmp_path), make_task()) as sandbox:
            return await sandbox.run([sys.executable, "-c", CALLS.format(ring=ring)])

    result = asyncio.run(main())
    refused = "EPERM" if kind == "apptainer" else "ENOSYS"  # Apptainer has no other answer
    assert result.output.split("\n")[:3] == [f"{number} -1 {refused}" for number in (248, 249, 250)], result


def test_the_program_is_one_that_the_kernel_takes_and_that_ends():
    code = seccomp.program()
    assert len(code) % 8 == 0
    instructions = [code[at : at + 8] for at in range(0, len(code), 8)]
    for place, one in enumerate(instructions):
        kind, yes, no = one[0] | one[1] << 8, one[2], one[3]
        if kind == 0x15:
            assert place + 1 + max(yes, no) < len(instructions)
    assert instructions[-1][:2] == b"\x06\x00"
