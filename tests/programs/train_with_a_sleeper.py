"""scripts/train_grpo.py with one agent that sleeps for a minute between two of its calls: its group, and no other, is
late."""

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from train_grpo import main  # noqa: E402

from coderepairrl.scaffolds import SCAFFOLDS  # noqa: E402
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig  # noqa: E402

SLEEPER, SLEEP_S = 6, 60.0  # the how manieth episode of the run


class Sleeper(Terminal):
    started = 0

    async def run(self, task, sandbox, endpoint) -> None:
        self.started += 1
        if self.started == SLEEPER:
            endpoint = replace(endpoint, http=SleepyHTTP(endpoint.http))
        await super().run(task, sandbox, endpoint)


class SleepyHTTP:
    """Sleeps after its first answer."""

    def __init__(self, http):
        self.http, self.requests = http, 0

    @asynccontextmanager
    async def post(self, *arguments, **keywords):
        async with self.http.post(*arguments, **keywords) as response:
            yield response
        self.requests += 1
        if self.requests == 1:
            await asyncio.sleep(SLEEP_S)


SCAFFOLDS[TerminalConfig] = Sleeper
main(sys.argv[1:])
