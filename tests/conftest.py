"""Shared by the tests that start the real programs: a small policy with random weights, and a way to run programs."""

import asyncio
import gc
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from coderepairrl.processes import proc

settings.register_profile("project", deadline=None)  # how long an example takes says nothing about the project
settings.load_profile("project")
ROOT = Path(__file__).resolve().parent.parent
SLOW = set((ROOT / "tests/slow.txt").read_text().split())  # written by programs/slow_tests.py
if "PYTEST_XDIST_WORKER" in os.environ:
    # while test files import PyTorch, transformers ...: looking through all that they make took 7 of 17 seconds, in
    # every worker
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # what stays is not looked through again
    gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.nodeid.partition("[")[0] in SLOW:
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # when -m has taken out what is not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole programs come first in each worker's part: one that begins last keeps a core alone.

    pytest-xdist's `worksteal` cuts the list into equal parts, one a worker, and who has done his takes from another's
    end.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    rest = [item for item in items if not item.get_closest_marker("whole")]
    whole = [item for item in items if item.get_closest_marker("whole")]
    ordered, size = [], len(items) / workers
    for worker in range(workers):
        first = whole[worker::workers]
        count = round(size * (worker + 1)) - len(ordered) - len(first)
        ordered += first + rest[:count]
        del rest[:count]
    items[:] = ordered + rest


def run_program(*arguments: str, timeout_s: float = 400.0) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once for all of pytest-xdist's workers."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, whole = root / name, root / f"{name}.whole"
    with FileLock(root / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    """A Hugging Face folder: trained tokenizer, random weights, small enough to start in seconds."""
    return once(tmp_path_factory, "policy", make_policy) / "model"


def make_policy(folder: Path) -> None:
    from coderepairrl.demonstrations.expert import DemonstrationsConfig, generate
    from coderepairrl.models.small_policy import SmallPolicyConfig, initial_model, save, train_tokenizer
    from coderepairrl.scaffolds.terminal import TOOLS

    rows = list(generate("demonstration", DemonstrationsConfig(episodes=200), "Repair the code.", processes=1))
    config = SmallPolicyConfig(hidden_size=64, layers=2, intermediate_size=128)
    blank = train_tokenizer([], config.vocabulary, config.context)
    tokenizer = train_tokenizer(
        [blank.apply_chat_template(row, tools=TOOLS, tokenize=False) for row in rows], config.vocabulary, config.context
    )
    save(initial_model(tokenizer, config), tokenizer, folder / "model")


def metrics_of(run: Path) -> list[dict]:
    """Its training steps, as often as they were done."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/tasks" not in row]


def pids_of(run: Path) -> dict[int, list[str]]:
    """Pid -> argv of the processes that belong to a run: all inherit CODEREPAIRRL_RUN from its driver."""
    return {
        pid: proc.words(pid)
        for pid in proc.pids()
        if pid != os.getpid() and f"CODEREPAIRRL_RUN={run.resolve()}" in proc.words(pid, "environ")
    }


def processes_of(run: Path) -> list[str]:
    """Command lines of the processes that belong to a run."""
    return [" ".join(words) for words in pids_of(run).values()]


def each_once(rows: Iterable[str], columns: Iterable[str]) -> list:
    """Parameters (row, column): each row and each column at least once; what else they make together takes long
    (`-m cluster`)."""
    rows, columns = list(rows), list(columns)
    shown = {(i % len(rows), i % len(columns)) for i in range(max(len(rows), len(columns)))}
    return [
        pytest.param(row, column, marks=[] if (i, j) in shown else pytest.mark.cluster)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]


# ---- fixtures of several files' tests; what they are made of is imported when one is asked for


@pytest.fixture(scope="session")
def demonstrations() -> list[dict]:
    """Conversations with tool calls; in some an assistant's message is not to be learnt."""
    from coderepairrl.demonstrations.expert import DemonstrationsConfig, generate
    from coderepairrl.scaffolds.terminal import TOOLS

    settings = DemonstrationsConfig(episodes=120, p_slip=0.5)
    rows = [
        {"messages": messages, "tools": TOOLS}
        for messages in generate("demonstration", settings, "Repair the code.", processes=1)
    ]
    assert any(not message.get("train", True) for row in rows for message in row["messages"])
    return rows


@pytest.fixture(scope="session")
def jsonl(demonstrations, tmp_path_factory) -> Path:
    """A file of them."""
    path = tmp_path_factory.mktemp("chat") / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    return path


@pytest.fixture
def config(tmp_path):
    """Of sandboxes in a folder of the test's own."""
    from coderepairrl.sandboxes import SandboxConfig

    return SandboxConfig(scratch=str(tmp_path))


@pytest.fixture(autouse=True)
def checkouts(request, monkeypatch):
    """Of which kind the test's checkouts are: kind "overlay" (sandbox_helpers.py) is bubblewrap with overlays."""
    if "kind" in request.fixturenames and request.getfixturevalue("kind") == "overlay":
        from coderepairrl.sandboxes import templates

        monkeypatch.setattr(templates, "OVERLAY_FROM", -1)


@pytest.fixture
def use(tmp_path):
    """use(kind, body, ...): runs `await body(sandbox)` in a fresh sandbox, then asserts that nothing of it is left."""
    from sandbox_helpers import make_task, running, sandbox_config

    from coderepairrl.sandboxes import start_sandbox

    def run(kind, body, task=None, scratch=tmp_path, **limits):
        config = sandbox_config(kind, scratch, **limits)

        async def main():
            async with start_sandbox(config, task or make_task()) as sandbox:
                return await body(sandbox)

        try:
            return asyncio.run(main())
        finally:
            assert list(tmp_path.glob("*/live/*")) == []
            assert str(tmp_path) not in Path("/proc/mounts").read_text()
            assert running(str(tmp_path)) == []

    return run


@pytest.fixture(scope="session")
def image_root(tmp_path_factory) -> Path:
    """An unpacked image, which nobody writes to."""
    from environments_helpers import make_image_root

    return make_image_root(tmp_path_factory.mktemp("image") / "root")


@pytest.fixture
def sleeping():
    """A command that sleeps five minutes, and that no other test has: `running(sleeping)` looks at the whole machine,
    where other tests run at the same time."""
    return f"sleep 300.{secrets.randbelow(10**12):012}"


@pytest.fixture
def bench(tmp_path):
    """A grid of tiny jobs."""
    from launch_helpers import Bench

    return Bench(tmp_path)


@pytest.fixture
def place(monkeypatch):
    """In the project's folder, where its scripts can be imported."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
