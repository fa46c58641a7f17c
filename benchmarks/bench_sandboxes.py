"""What a sandbox costs, beside the bare runtime in the same run.

    python benchmarks/bench_sandboxes.py configs/bench/sandboxes.yaml                      start, first command; grading
    python benchmarks/bench_sandboxes.py configs/bench/sandboxes.yaml kinds='[apptainer]'
    python benchmarks/bench_sandboxes.py configs/bench/sandboxes.yaml files=5000           a checkout of so many files
    python benchmarks/bench_sandboxes.py configs/bench/sandboxes.yaml mode=leaks           1,000 in a row, 200 at once

The first measures one start alone and many at once; a checkout of more than 40 files is an overlay.

The bare runtime runs the same command with the same isolation flags on a folder that is already there. A sandbox makes
that folder, runs the
command, watches it, and removes the folder. `leaks` counts processes, mounts, folders and files in /dev/shm before and
after; exit code 1 when
something is left.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.errors import SandboxError
from coderepairrl.grading.grader import grade
from coderepairrl.processes import proc
from coderepairrl.run.program import program
from coderepairrl.sandboxes import SandboxConfig, check, start_sandbox
from coderepairrl.types import Environment, Task

TEST = "import lib\n\n\ndef test_f():\n    assert lib.f() == 2\n"
IDLE = f"sleep 1000.{os.getpid()}"
FIX = (
    "diff --git a/lib.py b/lib.py\n--- a/lib.py\n+++ b/lib.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n"
    "+    return 2\n"
)


class BenchConfig(Config):
    mode: Literal["times", "leaks"] = "times"  # what is measured
    kinds: tuple[Literal["bubblewrap", "apptainer", "local"], ...] = ("bubblewrap",)  # of sandbox.kind
    scratch: str | None = None  # folder of the sandboxes; null: the system's temporary folder
    repeats: PositiveInt = 30  # measurements of one after the other; as many per place in flight, at least 60 in all
    in_flight: tuple[PositiveInt, ...] = (1, 8, 64)  # sandboxes at once
    files: PositiveInt = 20  # of the checkout
    in_a_row: PositiveInt = 1000  # of `leaks`: sandboxes one after the other
    at_once: PositiveInt = 200  # of `leaks`: sandboxes at once


def bench_task(files: int) -> Task:
    environment = Environment(
        "bench",
        None,
        sys.executable,
        (
            "{python}",
            "-P",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "pythonpath=.",
            "-o",
            "junit_family=xunit1",
            "--junitxml={junit}/report.xml",
            "{tests}",
            "{canary_path}",
        ),
    )
    content = {
        "lib.py": "def f():\n    return 1\n",
        **{f"package_{i % 50}/module_{i}.py": f"x = {i}\n" * 20 for i in range(files - 1)},
    }
    return Task(
        "bench", "", environment, content, {"test_lib.py": TEST}, ("test_lib.py",), ("test_lib::test_f",), (), FIX
    )


async def bare_argv(sandbox) -> list[str]:
    """What the sandbox itself would start for `true`, less everything around it; its folder stays while the block of
    `sandbox` lasts."""
    captured: list[list[str]] = []

    async def capture(argv, **keywords):
        captured.append(list(argv))
        return await real(argv, **keywords)

    module = sys.modules[type(sandbox).__module__]
    real, module.spawn = module.spawn, capture
    try:
        await sandbox.run(["true"])
    finally:
        module.spawn = real
    argv = captured[0]
    for option in ("--json-status-fd", "--seccomp"):  # descriptors that are closed by now
        if option in argv:
            at = argv.index(option)
            argv = argv[:at] + argv[at + 2 :]
    return argv


async def bare(argv: list[str]) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise SandboxError(f"the bare runtime failed: {output.decode(errors='replace')[-300:]}")


async def whole(config: SandboxConfig, task: Task) -> None:
    async with start_sandbox(config, task) as sandbox:
        result = await sandbox.run(["true"])
    if result.exit_code:
        raise SandboxError(f"the command failed: {result.output[-300:]}")


async def measure(one: Callable[[], Awaitable[None]], times: int, in_flight: int) -> tuple[list[float], float]:
    """(milliseconds of each, how many a second), with `in_flight` at any time."""
    left, taken = iter(range(times)), []

    async def worker():
        for _ in left:
            started = time.perf_counter()
            await one()
            taken.append((time.perf_counter() - started) * 1e3)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return taken, times / (time.perf_counter() - started)


def row(*cells) -> None:
    print(
        " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, (34, 9, 11, 11, 11, 11), strict=True)), flush=True
    )


def summary(taken: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(taken)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


async def times(config: BenchConfig, sandbox_config: SandboxConfig, task: Task) -> None:
    await whole(sandbox_config, task)  # the template
    async with start_sandbox(sandbox_config, task) as sandbox:
        argv = await bare_argv(sandbox)
        for in_flight in config.in_flight:
            number = max(config.repeats, 60 if in_flight > 1 else 0, in_flight)
            found = {}
            for name, one in (("bare runtime", lambda: bare(argv)), ("sandbox", lambda: whole(sandbox_config, task))):
                taken, rate = await measure(one, number, in_flight)
                found[name] = (*summary(taken), rate)
            ratio = found["sandbox"][0] / found["bare runtime"][0]
            for name, (median, p99, rate) in found.items():
                row(
                    f"{sandbox_config.kind}: {name}",
                    in_flight,
                    f"{median:.1f}",
                    f"{p99:.1f}",
                    f"{rate:.1f}",
                    f"{ratio:.2f}" if name == "sandbox" else "",
                )
    await grading(config, sandbox_config, task)


async def grading(config: BenchConfig, sandbox_config: SandboxConfig, task: Task) -> None:
    """Sandbox, diff and grading over the bare test command on the same files, without any sandbox."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=config.scratch))
    try:
        for name, text in {
            **task.files,
            **task.hidden_tests,
            "lib.py": "def f():\n    return 2\n",
            "test_canary.py": "def test_x():\n    assert 0\n",
        }.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        command = [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "pythonpath=.",
            f"--junitxml={folder}/report.xml",
            "test_lib.py",
            "test_canary.py",
        ]

        def plain():
            subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            )

        async def judged():
            async with start_sandbox(sandbox_config, task) as sandbox:
                await sandbox.write_text("lib.py", "def f():\n    return 2\n")
                diff = await sandbox.diff()
            verdict = await grade(task, diff, sandbox_config)
            if not verdict.resolved:
                raise SandboxError(f"the repair was not accepted: {verdict.message}")

        without, _ = await measure(lambda: asyncio.to_thread(plain), config.repeats, 1)
        with_all, _ = await measure(judged, config.repeats, 1)
    finally:
        shutil.rmtree(folder)
    (low, low99), (high, high99) = summary(without), summary(with_all)
    row("test command alone", 1, f"{low:.1f}", f"{low99:.1f}", "", "")
    row(
        f"{sandbox_config.kind}: sandbox, diff, grading", 1, f"{high:.1f}", f"{high99:.1f}", "", f"+{high - low:.0f} ms"
    )


def left_overs(scratch: Path) -> dict[str, set[str]]:
    """What a leak would add to."""
    lines = {f"{pid} {' '.join(words)}" for pid in proc.pids() if (words := proc.words(pid))}
    return {
        "processes": lines,
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "folders": set(map(str, scratch.glob("*/live/*"))),
        "files in /dev/shm": set(os.listdir("/dev/shm")),
    }


async def leaks(config: BenchConfig, sandbox_config: SandboxConfig, task: Task) -> bool:
    """True when nothing is left. Every fifth command is killed by its time limit with a process in the background,
    every eleventh episode is cancelled."""
    scratch = Path(sandbox_config.scratch)
    await whole(sandbox_config, task)
    before = left_overs(scratch)
    numbers = iter(range(10**9))

    async def one():
        number = next(numbers)

        async def episode():
            async with start_sandbox(sandbox_config, task) as sandbox:
                await sandbox.run(
                    f"setsid {IDLE} & {IDLE}" if number % 5 == 0 else "touch /dev/shm/x new; true",
                    timeout_s=0.3 if number % 5 == 0 else 60,
                )

        work = asyncio.create_task(episode())
        if number % 11 == 0:
            await asyncio.sleep(0.01)
            work.cancel()
        await asyncio.wait([work])
        if not work.cancelled() and work.exception():
            raise work.exception()

    for name, number, in_flight in (("in a row", config.in_a_row, 1), ("at once", config.at_once, config.at_once)):
        _, rate = await measure(one, number, in_flight)
        row(f"{sandbox_config.kind}: {number} {name}", in_flight, "", "", f"{rate:.1f}", "")
    for _ in range(50):  # what was just killed may take a moment to be gone
        found = {kind: after - before[kind] for kind, after in left_overs(scratch).items()}
        mine = {
            kind: {item for item in items if kind != "processes" or any(word in item for word in (str(scratch), IDLE))}
            for kind, items in found.items()
        }
        if not any(mine.values()):
            break
        await asyncio.sleep(0.2)
    for kind, items in mine.items():
        print(
            f"{sandbox_config.kind}: {len(items)} {kind} left"
            + "".join(f"\n    {item[:300]}" for item in sorted(items)[:10])
        )
    return not any(mine.values())


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    clean = True
    row("milliseconds", "in flight", "median", "p99", "a second", "over bare")
    with tempfile.TemporaryDirectory(prefix="bench-sandboxes-", dir=config.scratch) as scratch:
        for kind in config.kinds:
            sandbox_config = SandboxConfig(kind=kind, scratch=scratch)
            check(sandbox_config)
            run = times if config.mode == "times" else leaks
            clean = asyncio.run(run(config, sandbox_config, bench_task(config.files))) is not False and clean
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
