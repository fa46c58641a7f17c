"""Runs inside a sandbox, in an agent's place: asks the fork server for the agent, and ends as it ends.

python -I -S fork_client.py SOCKET JOB
"""

import array
import errno
import json
import os
import socket
import sys
import time

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts")  # in this order, and the code, as in fork_server.py
BROKEN = 70
SEND_S = 20.0  # for descriptors to find room; the server waits longer for a request
AGAIN_S = 0.05


def send(server: socket.socket, head: bytes, fds: list[int]) -> None:
    """With the descriptors. The kernel lets a user have so many on their way at once, all of its sandboxes together
    (ETOOMANYREFS): those of others arrive, or end with their sandbox."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    deadline = time.monotonic() + SEND_S
    while True:
        try:
            server.sendmsg([head], ancillary)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                raise
            time.sleep(AGAIN_S)


def main(path: str, job: str) -> int:
    fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in NAMESPACES] + [
        os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        1,
        2,
    ]
    request = json.dumps({"job": job, "variables": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
            send(server, len(request).to_bytes(4, "little"), fds)
            server.sendall(request)
            answer = json.loads(server.makefile().readline() or "{}")
        except OSError as error:
            answer = {"error": str(error)}
    if "error" in answer or "code" not in answer:
        print(f"the fork server: {answer.get('error', 'it ended')}", file=sys.stderr)
        return BROKEN
    return answer["code"]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
