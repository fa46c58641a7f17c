"""How long the event loop stands still, measured by itself.

Everything of a rollout process happens in one loop: while one callback computes, no model call is answered, no time
limit kept. A task that wakes up every TICK_S sees how much later than that it was woken. One number a step: what agents
make this program do shows in every run.
"""

import asyncio
import time

TICK_S = 0.02


class Standstill:
    """Use as `with Standstill() as standstill`, within the loop."""

    def __init__(self):
        self._worst_s, self._due = 0.0, 0.0

    def __enter__(self) -> "Standstill":
        self._due = time.monotonic() + TICK_S
        self._ticking = asyncio.create_task(self._tick())
        return self

    def __exit__(self, *_) -> None:
        self._ticking.cancel()

    @property
    def longest_s(self) -> float:
        """Since `begin`. One that is just over, and of which the task does not know yet, counts."""
        self._note()
        return self._worst_s

    def begin(self) -> None:
        """Again, with none."""
        self._note()
        self._worst_s = 0.0

    def _note(self) -> None:
        now = time.monotonic()
        self._worst_s = max(self._worst_s, now - self._due)
        self._due = max(self._due, now)

    async def _tick(self) -> None:
        while True:
            self._due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self._note()
