"""Many episodes of agents that only attack: nothing may be left, nothing may escape, and the event loop may not stand
still.

    python benchmarks/bench_hostile.py configs/bench/hostile.yaml                      1,000 episodes
    python benchmarks/bench_hostile.py configs/bench/hostile.yaml kind=apptainer episodes=100
    python benchmarks/bench_hostile.py configs/bench/hostile.yaml in_flight=1 only='[deep folders]'

Each episode is the product's own (run_episode): gateway, sandbox, diff, judge; its agent runs one row of DEEDS. Every
seventh is cancelled. Before and after, processes, mounts, folders, files in /dev/shm and this process's descriptors are
counted. Exit code 1 when something is left or escapes, or when the loop stood still for longer than
`most_standstill_s`.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
from bench_sandboxes import FIX, bench_task, left_overs
from pydantic import PositiveFloat, PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.demonstrations.scripted_server import ScriptedClient
from coderepairrl.gateway import Gateway, GatewayConfig, SamplingConfig, SessionLimits
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.rollout.standstill import Standstill
from coderepairrl.run.program import program
from coderepairrl.sandboxes import Sandbox, SandboxConfig, check
from coderepairrl.scaffolds import Endpoint
from coderepairrl.types import Outcome, Task

CANCELLED_AFTER_S = 0.3  # every seventh


class BenchConfig(Config):
    kind: Literal["bubblewrap", "apptainer"] = "bubblewrap"  # of the sandboxes
    episodes: PositiveInt = 1000  # in all
    in_flight: PositiveInt = 4  # of them at once
    only: tuple[str, ...] = ()  # rows of DEEDS; none: all
    scratch: str | None = None  # folder of the sandboxes; null: the system's temporary folder
    timeout_s: PositiveFloat = 4.0  # of a command
    most_standstill_s: PositiveFloat = 0.5  # of the event loop, at once; with more the exit code is 1


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import glob, mmap, os, signal, socket, sys, time\nM = 1 << 20\n{code}"]


DEEDS: dict[str, str | list[str]] = {
    "memory that is shared": python("""
m = mmap.mmap(-1, 600 * M)
for at in range(0, 600 * M, 4096): m[at] = 1
time.sleep(60)"""),
    "memory of many processes": python("for _ in range(4): os.fork()\nb = bytearray(50 * M); time.sleep(60)"),
    "files without a name": python("fd = os.memfd_create('x'); os.write(fd, bytes(60 * M)); time.sleep(60)"),
    "a file system of its own": "unshare -Urm sh -c 'mount -t tmpfs t /mnt && head -c 600M /dev/zero > /mnt/x'",
    "removed files": python("""
all = [open(f'f{n}', 'wb', 0) for n in range(20)]
for n, f in enumerate(all): os.unlink(f'f{n}'); f.write(bytes(30 * M))
time.sleep(60)"""),
    "a full disk": python("for n in range(20): open(f'f{n}', 'wb').write(bytes(30 * M))\ntime.sleep(60)"),
    "folders in memory": "head -c 900M /dev/zero > /tmp/x; head -c 900M /dev/zero > /dev/shm/x",
    "fork bomb": ":(){ :|:& };:; sleep 60",
    "killing all": "kill -9 -1; kill -9 1; kill -9 $PPID",
    "processes that stay": "setsid sleep 1000 & nohup sleep 1000 & sleep 0.2",
    "stopped processes": python("for _ in range(5): os.fork()\nos.kill(os.getpid(), signal.SIGSTOP)"),
    "endless output": "yes",
    "deep folders": python("for n in range(1500): os.mkdir('a'); os.chdir('a')\nopen('x', 'w').close()"),
    "long and deep folders": python("""
for n in range(300): os.mkdir('d' * 200); os.chdir('d' * 200)
open('f', 'wb').write(bytes(M))"""),
    "sparse files": python("for n in range(1500): open(f's{n}.py', 'wb').truncate(4 * M - 1)"),
    "many files": python("for n in range(20_000): open(f'n{n}.py', 'w').close()"),
    "a large diff": python("for n in range(30): open(f'l{n}.py', 'w').write('x = 1\\n' * 150_000)"),
    "quotes": python("open('lib.py', 'w').write(\"'\" + \"\\\\'\" * 100_000)"),
    "pipes where git looks": "mkfifo .gitattributes .gitignore .gitmodules pipe; rm lib.py; mkfifo lib.py",
    "names that git refuses": python(r"""
for n in ('git~1', '.GIT', 'a\\b', '\x01', '\udc80', 'x' * 255):
    os.makedirs(os.path.join('d', n), exist_ok=True); open(os.path.join('d', n, 'f'), 'w').close()"""),
    "nothing to read": "chmod -R 000 .",
    "links": "ln -s / root; ln -s . self; ln -s self/self loop; ln -sf /etc/passwd lib.py",
    "another git": "rm -rf .git; git init -q .; git config core.fsmonitor 'sleep 60'; git config core.worktree /; "
    "mkdir -p sub; git init -q sub; git add -A",
    "descriptors": python("""
all = []
try:
    while True: all.append(socket.socketpair())
except OSError: time.sleep(1)"""),
    "the gateway's socket": python("""
path, = glob.glob('/tmp/*/gateway.socket'); all = []
for n in range(500):
    one = socket.socket(socket.AF_UNIX); one.settimeout(1)
    try: one.connect(path); one.sendall(b'POST /v1/completions HTTP/1.1\\r\\nContent-Length: 99\\r\\n'); all.append(one)
    except OSError: pass
time.sleep(1)"""),
}


@dataclass
class Hostile:
    """Does one row, then repairs the task where that is still possible: the others' end must not depend on it."""

    name: str
    timeout_s: float
    socket: Path
    calls_model = False

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        sandbox.show(str(self.socket.parent))
        await sandbox.run(DEEDS[self.name], timeout_s=self.timeout_s)


class Bench:
    def __init__(self, config: BenchConfig, scratch: Path):
        self.config, self.scratch = config, scratch
        self.sandbox = SandboxConfig(
            kind=config.kind, scratch=str(scratch), memory_mib=256, disk_mib=128, tmp_mib=64, processes=64
        )
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.standstill_s: dict[str, float] = defaultdict(float)  # while a row ran; others ran beside it
        self.escaped: list[str] = []

    async def run(self) -> bool:
        """True when all is well."""
        socket = self.scratch / "gateway/gateway.socket"
        socket.parent.mkdir(mode=0o755)
        gateway = Gateway(GatewayConfig(), [ScriptedClient()], None, socket)
        await gateway.start()
        try:
            async with aiohttp.ClientSession() as http:
                grader = Grader(self.sandbox)
                task = bench_task(20)
                await grader.grade(task, FIX)  # the template, and the oracle's run
                limits = SessionLimits(max_total_tokens=1000, deadline_s=600)
                self.services = lambda name: Services(
                    gateway,
                    Hostile(name, self.config.timeout_s, socket),
                    self.sandbox,
                    grader,
                    RewardConfig(),
                    limits,
                    http,
                )
                before, descriptors = left_overs(self.scratch), len(os.listdir("/proc/self/fd"))
                with Standstill() as self.standstill:
                    worst_s = await self._all(task)
                left = await self._left(before)
                descriptors = len(os.listdir("/proc/self/fd")) - descriptors
        finally:
            await gateway.stop()
        return self._told(worst_s, left, descriptors)

    async def _all(self, task: Task) -> float:
        names = list(self.config.only or DEEDS)
        numbers, worst_s = iter(range(self.config.episodes)), 0.0

        async def worker() -> None:
            nonlocal worst_s
            for number in numbers:
                name = names[number % len(names)]
                await self._one(task, name, cancelled=number % 7 == 6)
                seen_s = self.standstill.longest_s
                self.standstill.begin()
                worst_s = max(worst_s, seen_s)
                self.standstill_s[name] = max(self.standstill_s[name], seen_s)

        await asyncio.gather(*(worker() for _ in range(self.config.in_flight)))
        return worst_s

    async def _one(self, task: Task, name: str, cancelled: bool) -> None:
        work = asyncio.create_task(
            run_episode(
                self.services(name),
                task,
                trajectory_id="t",
                group_id="g",
                split="train",
                attempt=0,
                sampling=SamplingConfig(),
                cache_salt="",
            )
        )
        if cancelled:
            await asyncio.wait([work], timeout=CANCELLED_AFTER_S)
            work.cancel()
        await asyncio.wait([work])
        if work.cancelled():
            self.outcomes[name]["cancelled"] += 1
        elif error := work.exception():
            self.escaped.append(f"{name}: {type(error).__name__}: {error}")
        else:
            found = work.result()
            kind = found.verdict.kind if found.verdict else found.outcome_detail[:200]
            self.outcomes[name][f"{found.outcome}, {kind}"] += 1
            if found.reward:
                self.escaped.append(f"{name}: rewarded")

    async def _left(self, before: dict[str, set[str]]) -> dict[str, set[str]]:
        """What was just killed may take a moment to be gone. Of processes, those that name our folder, and those that
        attack."""
        marks = (str(self.scratch), "sleep 1000", "time.sleep(60)", "socketpair", "os.fork()")
        for _ in range(50):
            left = {kind: found - before[kind] for kind, found in left_overs(self.scratch).items()}
            left["processes"] = {line for line in left["processes"] if any(mark in line for mark in marks)}
            if not any(left.values()):
                break
            await asyncio.sleep(0.2)
        return left

    def _told(self, worst_s: float, left: dict[str, set[str]], descriptors: int) -> bool:
        for name, outcomes in self.outcomes.items():
            ends = "; ".join(f"{number} {end}" for end, number in outcomes.most_common())
            print(f"{name:>24} | {self.standstill_s[name]:6.2f} s | {ends}")
        for one in self.escaped:
            print(f"ESCAPED  {one}")
        for kind, items in left.items():
            print(f"{len(items)} {kind} left" + "".join(f"\n    {item[:300]}" for item in sorted(items)[:10]))
        print(f"{descriptors} descriptors more than before; the loop stood still for {worst_s:.2f} s at most")
        infrastructure = sum(
            number
            for ends in self.outcomes.values()
            for end, number in ends.items()
            if end.startswith(str(Outcome.INFRASTRUCTURE_ERROR))
        )
        print(f"{infrastructure} episodes ended as infrastructure errors")
        fine = not (self.escaped or any(left.values()) or descriptors > 0 or infrastructure)
        return fine and worst_s <= self.config.most_standstill_s


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    with tempfile.TemporaryDirectory(prefix="bench-hostile-", dir=config.scratch) as scratch:
        os.chmod(scratch, 0o755)
        bench = Bench(config, Path(scratch))
        check(bench.sandbox)
        started = time.monotonic()
        fine = asyncio.run(bench.run())
        took_s = time.monotonic() - started
        print(f"{config.kind}: {config.episodes} episodes, {config.in_flight} at once, {took_s:.0f} s")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
