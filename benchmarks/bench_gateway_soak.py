"""Clients that hang up and try again at random, a part of bench_gateway.py."""

import asyncio
import itertools
import json
import random

from bench_gateway_load import Target, row
from bench_gateway_servers import Server


class Soak:
    """The upstream says the end of each prompt, which names the session and the turn."""

    def __init__(self, target: Target, at_once: int):
        self.target, self.slots = target, asyncio.Semaphore(at_once)
        self.faults: list[str] = []
        self.sampled = self.hung_up = 0

    async def session(self, number: int) -> None:
        async with self.slots:
            url, headers = await self.target.open()
            messages, answers = [], []
            for turn in range(random.randint(2, 6)):
                words = f"word {random.random()} session {number} turn {turn} end"
                messages = [*messages, {"role": "user", "content": words}]
                answer = await self._ask(url, headers, json.dumps({"messages": messages}).encode())
                messages.append(answer["choices"][0]["message"])
                answers.append(messages[-1]["content"])
                if f"session {number} turn {turn} end" not in answers[-1]:
                    self.faults.append(f"session {number}, turn {turn} got {answers[-1]!r}")
            closed = await self.target.close(headers, "?calls=1")
            self._compare(number, answers, closed["calls"])

    async def _ask(self, url: str, headers: dict[str, str], body: bytes) -> dict:
        """The answer, after as many tries as it takes."""
        for attempt in itertools.count():
            try:
                async with asyncio.timeout(random.uniform(0.005, 0.1) if random.random() < 0.3 else 60):
                    again = headers | {"x-stainless-retry-count": str(attempt)}
                    return json.loads(await self.target.call(url, again, body))
            except TimeoutError:
                self.hung_up += 1

    def _compare(self, number: int, answers: list[str], record: list[dict]) -> None:
        self.sampled += len(record)
        parents = [call["parent"] for call in record]
        if parents != [None, *range(len(answers) - 1)] or any(
            a not in call["text"] for a, call in zip(answers, record)
        ):
            self.faults.append(f"session {number}: {len(answers)} answers, {len(record)} calls with parents {parents}")


async def soak(sessions: int, at_once: int, target: Target, upstream: Server) -> bool:
    """True when all is well."""
    found, share = Soak(target, at_once), sessions // 4
    row("soak", "sessions", "calls", "hung up", "sampled", "faults", "memory MiB")
    for done in range(share, 4 * share + 1, share):
        await asyncio.gather(*(found.session(done - share + i) for i in range(share)))
        async with target.http.get(upstream.url + "/asked") as response:
            asked = await response.json()
        memory = f"{target.server.memory_mib():.0f}"
        row(f"after {done}", done, found.sampled, found.hung_up, asked, len(found.faults), memory)
    async with target.http.get(target.server.url + "/left") as response:
        left = await response.json()
    print(f"left in the gateway: {left['sessions']} sessions, {left['tasks']} tasks")
    faults = found.faults
    faults += [f"{asked} were sampled, {found.sampled} are on record"] if asked != found.sampled else []
    faults += [f"{left['sessions']} sessions were not given back"] if left["sessions"] else []
    for fault in faults[:20]:
        print(f"    {fault}")
    return not faults
