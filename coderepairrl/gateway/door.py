"""Who may come in by the gateway's Unix socket, and how often: it is shown to sandboxes, and what comes from there has
no key yet.

Each connection takes a descriptor of the rollout process, of which that has a number for everything. So a sandbox (its
network namespace, of which it can make no other) may have some at once, which an honest agent never notices, and all
together no more than half of what the process may have open. What is beyond is hung up on at once: that is the trouble
of whoever opened it.
"""

import asyncio
import logging
import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)
PER_SANDBOX = 64
SHARE = 0.5  # of this process's descriptors
# asyncio accepts so many before it asks about the first, and again before that is gone; others wait
AT_ONCE = 16
UNKNOWN = 0  # a client into which this user may not look


class Door:
    """`make`: the protocol of a connection that may stay."""

    def __init__(self, make: Callable[[], asyncio.Protocol]):
        self.make = make
        self.refused = 0
        self.inside: Counter[int] = Counter()  # sandbox -> connections

    async def open(self, path: Path) -> asyncio.Server:
        return await asyncio.get_running_loop().create_unix_server(lambda: _Guest(self), str(path), backlog=AT_ONCE)

    def enter(self, transport: asyncio.Transport) -> int | None:
        """Its sandbox, or None where it has to go."""
        who = _sandbox_of(transport.get_extra_info("socket"))
        most = SHARE * resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if who is None or self.inside[who] >= PER_SANDBOX or self.inside.total() >= most:
            self.refused += 1
            if self.refused.bit_count() == 1:  # the log of a flood stays short
                log.warning(
                    "%d connections to the gateway's socket were refused: a sandbox had %d already, or all %d",
                    self.refused,
                    PER_SANDBOX,
                    most,
                )
            return None
        self.inside[who] += 1
        return who

    def leave(self, who: int) -> None:
        self.inside[who] -= 1
        if not self.inside[who]:
            del self.inside[who]


class _Guest(asyncio.Protocol):
    """One connection: what it says goes to the protocol that is made for it, unless it may not come in."""

    def __init__(self, door: Door):
        self.door, self.who, self.behind = door, None, None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.who = self.door.enter(transport)
        if self.who is None:
            return transport.abort()
        self.behind = self.door.make()
        self.behind.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.behind is not None:
            self.door.leave(self.who)
            self.behind.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self.behind is not None:
            self.behind.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self.behind is None else self.behind.eof_received()

    def pause_writing(self) -> None:
        self.behind.pause_writing()

    def resume_writing(self) -> None:
        self.behind.resume_writing()


def _sandbox_of(connection: socket.socket) -> int | None:
    """None of a client that has gone."""
    client, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return os.stat(f"/proc/{client}/ns/net").st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        return UNKNOWN
