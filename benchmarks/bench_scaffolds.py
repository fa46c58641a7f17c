"""What an agent costs beside its model: CPU, memory and start-up of an episode, alone and many at once.

    python benchmarks/bench_scaffolds.py configs/bench/scaffolds.yaml
    python benchmarks/bench_scaffolds.py configs/bench/scaffolds.yaml at_once='[1]' scaffolds='[{name: codex}]'

Each agent repairs the same small task with three scripted answers, which come at once: real gateway, real sandboxes, no
model, no grading.
`nothing` is a program that does nothing: what sandbox, relay and diff cost by themselves; it is in every line below it.

    CPU s     an episode, of all processes that it starts; what a fork server costs before the first episode is apart
              ("once")
    ours      an episode, of this process: gateway, runner, file operations
    MiB       of an episode's processes at their peak, shared pages divided among those that share them (PSS), beyond
              what is there before
    first     from the start of the agent to its first call: median and 99th percentile, ms
    wall      of an episode, s, median
Exit code 1 when an agent does not repair the task.
"""

import asyncio
import ctypes
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from pydantic import PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ScaffoldError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.gateway.vllm_client import Completion
from coderepairrl.models.small_policy import SmallPolicyConfig, train_tokenizer
from coderepairrl.processes import proc
from coderepairrl.processes.proc import tree
from coderepairrl.run.program import program
from coderepairrl.sandboxes import SandboxConfig, check, start_sandbox
from coderepairrl.scaffolds import Endpoint, Scaffold, ScaffoldConfig, make_scaffold, ready
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.tasks.functions import Puzzle, puzzles

SAMPLE_S = 0.2  # between two looks at the memory of all processes
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
NOTHING = CommandConfig(argv=("true",))
LIMITS = SessionLimits(max_total_tokens=200_000, deadline_s=600)


class BenchConfig(Config):
    scaffolds: tuple[ScaffoldConfig, ...]  # the agents
    at_once: tuple[PositiveInt, ...] = (1, 16, 64)  # episodes
    episodes: PositiveInt = 16  # of each measurement, at least; as many as there are at once, if that is more
    sandbox: SandboxConfig = SandboxConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()


def answers(name: str, puzzle: Puzzle) -> list[str]:
    """What the model says: look, repair, be done. An agent that is told nothing of here uses the shell as
    examples/command does."""

    def tool(tool_name: str, **arguments: str) -> str:
        return f"<tool_call>\n{json.dumps({'name': tool_name, 'arguments': arguments})}\n</tool_call>"

    look, repair = "cat lib.py", f"git apply <<'EOF'\n{puzzle.task.oracle_patch}EOF"
    wrong, right = (source.split("\n")[puzzle.bug.line - 1] for source in (puzzle.broken, puzzle.program.source))
    edit = f"lib.py\n```python\n<<<<<<< SEARCH\n{wrong}\n=======\n{right}\n>>>>>>> REPLACE\n```"
    done = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
    return {
        "terminal": [tool("shell", command=look), tool("shell", command=repair), tool("submit")],
        "mini_swe_agent": [tool("bash", command=look), tool("bash", command=repair), tool("bash", command=done)],
        "codex": [tool("exec_command", cmd=look), tool("exec_command", cmd=repair), "done"],
        "aider": [edit, "done"],
        "single_pass": [edit],
    }.get(name, [tool("shell", command=look), tool("shell", command=repair), "done"])


class ScriptedModel(VLLMClient):
    """Answers the n-th call of every session with the n-th text."""

    def __init__(self, tokenizer, texts: list[str]):
        super().__init__("http://localhost", wait_s=1)
        self.completions = [
            tuple(tokenizer.encode(text + tokenizer.eos_token, add_special_tokens=False)) for text in texts
        ]

    async def generate(self, prompt_ids: tuple[int, ...], *, request_id: str, **_) -> Completion:
        ids = self.completions[min(int(request_id.rpartition("-")[2]), len(self.completions)) - 1]
        return Completion(ids, (-0.5,) * len(ids), (0,) * len(ids), "stop")


@dataclass(frozen=True)
class Measured:
    first_s: list[float]
    wall_s: list[float]
    ours_s: float  # CPU of the process that ran the episodes, while it did
    all_ours_s: float  # and of its whole life
    peak_mib: float


def apart(work: Callable[[], Measured]) -> tuple[Measured, float]:
    """(what work() returns in a process of its own, CPU seconds of all processes that it started). A sandbox's first
    process may be orphaned before it
    has ended, and its CPU time would be nobody's: so this process adopts all orphans and waits for them."""
    before, (here, there) = cpu_s(resource.RUSAGE_CHILDREN), multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: there.send(work()))
    process.start()
    there.close()
    try:
        measured = here.recv()
    except EOFError:
        raise ScaffoldError("the measurement broke: its error stands above") from None
    process.join()
    while tree(os.getpid())[1:]:
        os.waitpid(-1, 0)
    return measured, cpu_s(resource.RUSAGE_CHILDREN) - before - measured.all_ours_s


class Memory(threading.Thread):
    """What all processes that this one has started hold; `peak_mib` is the most since it was set to 0."""

    peak_mib = 0.0

    def __init__(self):
        super().__init__(daemon=True)
        self.start()

    def run(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, sum(map(pss_mib, tree(os.getpid())[1:])))
            time.sleep(SAMPLE_S)


def pss_mib(pid: int) -> float:
    lines = proc.text(pid, "smaps_rollup").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


async def episode(
    scaffold: Scaffold, gateway: Gateway, puzzle: Puzzle, config: BenchConfig, http: aiohttp.ClientSession
) -> tuple[float, float]:
    """(seconds to the first call, seconds of all). Raises ScaffoldError when the task is not repaired."""
    started = time.perf_counter()
    async with start_sandbox(config.sandbox, puzzle.task) as sandbox:
        session = gateway.open_session(LIMITS, SamplingConfig())
        await scaffold.run(puzzle.task, sandbox, Endpoint.of(session, http))
        await gateway.close_session(session.key)
        diff = await sandbox.diff()
    texts = (diff, puzzle.task.oracle_patch)
    changed, wanted = ([line for line in text.split("\n") if line.startswith(("+", "-"))] for text in texts)
    if session.calls and changed != wanted:
        raise ScaffoldError(f"the task is not repaired: {diff!r}")
    return session.calls[0].started_s if session.calls else 0.0, time.perf_counter() - started


async def episodes(
    name: str,
    scaffold: Scaffold,
    number: int,
    in_flight: int,
    puzzle: Puzzle,
    config: BenchConfig,
    tokenizer,
    memory: bool,
) -> Measured:
    """So many, after one that is not counted. Episodes start as others end, `in_flight` at any time. Watching the
    memory costs CPU time."""
    times: list[tuple[float, float]] = []
    async with ready(scaffold, config.environments) as socket, aiohttp.ClientSession() as http:
        gateway = Gateway(
            GatewayConfig(), [ScriptedModel(tokenizer, answers(name, puzzle))], Renderer(tokenizer, {}), socket
        )
        await gateway.start()
        await episode(scaffold, gateway, puzzle, config, http)
        watch, idle_mib = None, 0.0
        if memory:
            watch = Memory()
            await asyncio.sleep(3 * SAMPLE_S)
            idle_mib, watch.peak_mib = watch.peak_mib, 0.0
        ours, left = cpu_s(resource.RUSAGE_SELF), iter(range(number))

        async def worker() -> None:
            for _ in left:
                times.append(await episode(scaffold, gateway, puzzle, config, http))

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        ours = cpu_s(resource.RUSAGE_SELF) - ours
        await gateway.stop()
    first, wall = ([], []) if not times else map(sorted, zip(*times, strict=True))
    return Measured(first, wall, ours, cpu_s(resource.RUSAGE_SELF), watch.peak_mib - idle_mib if watch else 0.0)


def measure(name: str, scaffold: Scaffold, puzzle: Puzzle, config: BenchConfig, tokenizer) -> None:
    """A line for each number of episodes at once."""

    def run(number: int, in_flight: int, memory: bool = False) -> tuple[Measured, float]:
        return apart(
            lambda: asyncio.run(episodes(name, scaffold, number, in_flight, puzzle, config, tokenizer, memory))
        )

    _, start_s = run(0, 1)
    for in_flight in config.at_once:
        number = max(config.episodes, in_flight)
        measured, used_s = run(number, in_flight)
        each_s = (used_s - start_s) / number
        peak_mib = run(in_flight, in_flight, memory=True)[0].peak_mib
        row(
            name,
            in_flight,
            f"{each_s:.2f}",
            f"{max(start_s - each_s, 0.0):.2f}",
            f"{measured.ours_s / number:.3f}",
            f"{max(peak_mib, 0.0) / in_flight:.0f}",
            f"{statistics.median(measured.first_s) * 1e3:.0f}",
            f"{measured.first_s[min(int(0.99 * number), number - 1)] * 1e3:.0f}",
            f"{statistics.median(measured.wall_s):.2f}",
        )


def row(*cells) -> None:
    print("".join(f"{cell:<22}" if i == 0 else f"{cell:>10}" for i, cell in enumerate(cells)), flush=True)


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    puzzle, tokenizer = next(puzzles("train", "bench")), train_tokenizer([], SmallPolicyConfig().vocabulary, 200_000)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="coderepairrl-bench-") as folder:
        Path(folder).chmod(0o755)
        config = config.model_copy(
            update={"sandbox": config.sandbox.model_copy(update={"scratch": config.sandbox.scratch or folder})}
        )
        check(config.sandbox)
        row("", "at once", "CPU s", "once", "ours", "MiB", "first", "99%", "wall")
        for scaffold in (NOTHING, *config.scaffolds):
            measure(
                "nothing" if scaffold is NOTHING else scaffold.name, make_scaffold(scaffold), puzzle, config, tokenizer
            )


if __name__ == "__main__":
    main(sys.argv[1:])
