"""The runner of agents that are programs: what they see, how they end, and that nothing of them is left. The agents are
small scripts."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from gateway_helpers import Upstream
from sandbox_helpers import ISOLATED, KINDS, isolated, needs_apptainer
from sandbox_helpers import running as processes
from scaffold_helpers import LIMITS, episodes, running

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError, SandboxError
from coderepairrl.gateway import Gateway, GatewayConfig, SessionLimits
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.scaffolds import Endpoint, make_scaffold, process_scaffold, ready
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.scaffolds.installation import Installation, install
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Outcome

TASK = next(puzzles("train", "process")).task
LOOK = r"""
import json, os, socket, sys, urllib.error, urllib.request
from pathlib import Path

def ask(key, url=os.environ["OPENAI_BASE_URL"]):
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "x" * 150000}]}).encode()
    headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
    request = urllib.request.Request(url + "/chat/completions", body, headers)
    try:
        return json.load(urllib.request.urlopen(request, timeout=20))["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        return error.code

def reaches(address):
    try:
        socket.create_connection(address, timeout=2).close()
        return True
    except OSError:
        return False

home = Path(os.environ["HOME"])
(home / "deep").mkdir()
(home / "deep/notes.txt").write_text("mine")
found = {"cwd": os.getcwd(), "home": str(home), "argv": sys.argv[1:], "read": Path(sys.argv[1]).read_text(),
         "own": (home / "sub/data.txt").read_text(), "answer": ask(os.environ["OPENAI_API_KEY"]),
         "stranger": ask("sk-nobody"), "stdin": sys.stdin.read(), "variable": os.environ["MINE"],
         "reaches": [reaches(("127.0.0.1", port)) for port in map(int, sys.argv[2:])],
         "pid": os.getpid(), "uid": os.getuid()}
Path("found.json").write_text(json.dumps(found))
"""


def agent(script: str, tmp_path: Path, *arguments: str, **config):
    """A Python script as an agent, under the Python of an empty installation."""
    path = tmp_path / "script.py"
    path.write_text(script)
    config["files"] = {"agent.py": str(path)} | config.get("files", {})
    return make_scaffold(CommandConfig(argv=("{python}", "-I", "{home}/agent.py", *arguments), **config))


def shell(line: str):
    return make_scaffold(CommandConfig(argv=("bash", "-c", line)))


@pytest.mark.parametrize("kind", ISOLATED)
def test_an_agent_sees_its_checkout_its_home_its_model_and_no_other_network(kind, tmp_path):
    (tmp_path / "data.txt").write_text("größer\n")
    scratch = tmp_path / "scratch"
    with socket.create_server(("127.0.0.1", 0)) as server:  # something of this machine that listens
        port = server.getsockname()[1]
        scaffold = agent(
            LOOK,
            tmp_path,
            "{problem_file}",
            str(port),
            "61001",
            files={"sub/data.txt": str(tmp_path / "data.txt")},
            variables={"MINE": "{workdir}|{model}|{base_url}|$HOME|{task_python}"},
        )
        [trajectory] = asyncio.run(
            episodes(scaffold, [(TASK, ["hello"])], scratch, kind="bubblewrap" if kind == "overlay" else kind)
        )
    assert trajectory.outcome == Outcome.SUBMITTED, trajectory.outcome_detail
    assert [line for line in trajectory.diff.splitlines() if line.startswith("diff")] == [
        "diff --git a/found.json b/found.json"
    ]
    found = json.loads(next(line[1:] for line in trajectory.diff.splitlines() if line.startswith("+{")))
    assert (
        found["cwd"] == "/repo"
        and found["home"] == "/agent"
        and found["read"] == TASK.problem_statement
        and found["own"] == "größer\n"
    )
    assert found["answer"] == "hello" and found["stranger"] == 401 and found["stdin"] == "" and found["uid"] == 1000
    assert found["variable"] == f"/repo|policy|http://127.0.0.1:61001/v1|$HOME|{TASK.environment.python}"
    assert found["reaches"] == [False, True]
    # the long message came through whole
    assert len(trajectory.calls) == 1 and len(trajectory.calls[0].prompt_ids) > 10_000
    assert not list(scratch.glob("*/live/*")) and not processes(str(tmp_path))


def test_without_isolation_an_agent_asks_the_gateway_itself(tmp_path):
    scaffold = agent(
        LOOK,
        tmp_path,
        "{problem_file}",
        files={"sub/data.txt": str(tmp_path / "script.py")},
        variables={"MINE": "{home}"},
    )
    [trajectory] = asyncio.run(episodes(scaffold, [(TASK, ["hello"])], tmp_path / "scratch", kind="local"))
    assert (
        trajectory.outcome == Outcome.SUBMITTED
        and trajectory.diff.count("diff --git") == 1
        and "hello" in trajectory.diff
    )
    assert not list((tmp_path / "scratch").glob("*/live/*"))


@pytest.mark.parametrize(
    "line, said",
    [
        ("echo something went wrong; exit 3", "exit code 3: something went wrong"),
        ("kill -9 $$", "exit code 137"),
        ("seq 100000; echo the end; exit 1", "the end"),
    ],
)
def test_an_agent_that_breaks_is_an_agent_error_with_its_last_words(line, said, tmp_path):
    [trajectory] = asyncio.run(episodes(shell(f"echo kept > new.txt; {line}"), [(TASK, [])], tmp_path))
    assert (
        trajectory.outcome == Outcome.AGENT_ERROR
        and said in trajectory.outcome_detail
        and len(trajectory.outcome_detail) < 1000
    )
    assert "+kept" in trajectory.diff and trajectory.verdict is not None  # what it did is graded all the same


def test_a_program_that_is_not_there_is_named(tmp_path):
    [trajectory] = asyncio.run(episodes(make_scaffold(CommandConfig(argv=("/no/such/agent",))), [(TASK, [])], tmp_path))
    assert (
        trajectory.outcome == Outcome.AGENT_ERROR
        and "/no/such/agent: No such file or directory" in trajectory.outcome_detail
    )


STUBBORN = """
import os, sys, urllib.request, urllib.error
while True:
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions",
                                     b'{"messages": [{"role": "user", "content": "x"}]}',
                                     {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
    try:
        urllib.request.urlopen(request).read()
        open("calls.txt", "a").write("call\\n")
    except urllib.error.HTTPError as error:
        pass
"""


def test_an_agent_that_does_not_stop_is_killed_once_its_session_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(process_scaffold, "GRACE_S", 0.3)
    upstream = Upstream()

    async def main():
        async with (
            asyncio.timeout(60),
            running(agent(STUBBORN, tmp_path), tmp_path / "scratch", upstream, SessionLimits(max_turns=2)) as episode,
        ):
            return await episode(TASK, ["one", "two", "three"])

    trajectory = asyncio.run(main())
    assert (
        trajectory.outcome == Outcome.TURN_LIMIT and len(upstream.requests) == 2 and trajectory.diff.count("+call") == 2
    )
    assert not processes(str(tmp_path)) and not list(tmp_path.glob("scratch/*/live/*"))


def test_a_deadline_ends_an_agent_that_never_asks_and_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(process_scaffold, "GRACE_S", 0.3)
    marker = f"999{hash(str(tmp_path)) % 10**6}"
    line = f"echo kept > new.txt; nohup setsid sleep {marker} & trap '' TERM HUP INT; while :; do sleep {marker}; done"
    [trajectory] = asyncio.run(
        episodes(shell(line), [(TASK, [])], tmp_path, limits=LIMITS.model_copy(update={"deadline_s": 1.0}))
    )
    assert trajectory.outcome == Outcome.TIME_LIMIT and "+kept" in trajectory.diff
    assert not processes(marker) and not processes(str(tmp_path)) and not list(tmp_path.glob("*/live/*"))


@isolated
def test_a_cancelled_episode_leaves_nothing(kind, tmp_path):
    marker = f"998{hash(str(tmp_path)) % 10**6}"

    async def main():
        runtime = "bubblewrap" if kind == "overlay" else kind
        async with (
            asyncio.timeout(60),
            running(shell(f"sleep {marker} & sleep {marker}"), tmp_path, Upstream(), kind=runtime) as episode,
        ):
            task = asyncio.create_task(episode(TASK))
            while not processes(marker):
                await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

    assert asyncio.run(main())
    assert not processes(marker) and not processes(str(tmp_path)) and not list(tmp_path.glob("*/live/*"))


def test_a_sandbox_that_cannot_be_ended_is_the_machines_failure(monkeypatch):
    """Its processes may still write into the checkout, of which the diff would be made."""
    monkeypatch.setattr(process_scaffold, "GRACE_S", 0.01)

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            raise SandboxError("a killed sandbox did not end")

    with pytest.raises(SandboxError):
        asyncio.run(process_scaffold._until_closed(endless(), Endpoint("", "key", None, closed=lambda: True)))


def test_the_gateways_socket_goes_with_the_run(tmp_path):
    async def main():
        async with ready(shell("true"), EnvironmentsConfig()) as path:
            gateway = Gateway(GatewayConfig(), [], None, path)
            await gateway.start()
            there = path.is_socket()
            await gateway.stop()
            return path, there

    path, there = asyncio.run(main())
    assert there and not path.parent.exists()


def test_a_gateway_without_a_socket_is_the_programs_mistake(tmp_path):
    async def main():
        scaffold = shell("true")
        await scaffold.prepare(EnvironmentsConfig())
        async with (
            aiohttp.ClientSession() as http,
            start_sandbox(SandboxConfig(scratch=str(tmp_path)), TASK) as sandbox,
        ):
            await scaffold.run(TASK, sandbox, Endpoint("", "key", http))

    with pytest.raises(ConfigError, match="socket_path"):
        asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_read_only_and_at_its_own_path(kind, tmp_path):
    folder = tmp_path / "shown folder"
    folder.mkdir()
    (folder / "file.txt").write_text("here")
    (folder / "file.txt").chmod(0o666)
    folder.chmod(0o777)

    async def main():
        async with start_sandbox(
            SandboxConfig(kind="bubblewrap" if kind == "overlay" else kind, scratch=str(tmp_path / "scratch")), TASK
        ) as sandbox:
            sandbox.show(str(folder))
            read = await sandbox.run(["cat", str(folder / "file.txt")])
            write = await sandbox.run(f"echo x > '{folder}/file.txt'; touch '{folder}/new'; ls '{tmp_path}'")
            with pytest.raises(SandboxError, match="no folder"):
                sandbox.show(str(tmp_path / "nowhere"))
            return read.output, write.output

    read, write = asyncio.run(main())
    assert read == "here"
    if kind != "local":  # which isolates nothing
        assert (
            write.count("Read-only file system") == 2
            and "scratch" not in write
            and (folder / "file.txt").read_text() == "here"
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An unpacked image with this machine's shell and libraries, and with folders of its own where the agent's
    installation will be shown."""
    folder = tmp_path_factory.mktemp("image")
    for name in (
        "bash",
        "cat",
        "env",
        "id",
        "mkdir",
        "mount",
        "prlimit",
        "setpriv",
        "unshare",
        os.path.realpath(sys.executable),
    ):
        program = shutil.which(name)
        libraries = [
            word for word in subprocess.check_output(["ldd", program], text=True).split() if word.startswith("/")
        ]
        for path, inside in [
            (program, f"usr/bin/{os.path.basename(name)}"),
            *((path, path.lstrip("/")) for path in libraries),
        ]:
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / inside)
    for name in ("proc", "sys", "dev", "tmp", "etc", "testbed"):
        (folder / name).mkdir()
    for name in ("passwd", "group"):
        (folder / "etc" / name).touch()
    (folder / "bin").symlink_to("usr/bin")
    (folder / "usr/bin/sh").symlink_to("bash")
    return folder


@pytest.mark.parametrize("kind", ["bubblewrap", pytest.param("apptainer", marks=needs_apptainer)])
def test_an_agent_runs_in_an_image_that_has_the_same_folders(kind, image, tmp_path):
    cache = asyncio.run(install(Installation("command"), EnvironmentsConfig())).folder.parents[1]
    own = Path(f"{image}{cache}")  # of the image, beside what is shown
    if not own.exists():
        own.mkdir(parents=True)
        (own / "file.txt").write_text("from the image")
        (own / "link").symlink_to("file.txt")
    script = f"""
import os, socket
# this machine's Python may need libraries that the image lacks, for more than this
with socket.create_connection(("127.0.0.1", 61001)) as s:
    s.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
    answer = s.recv(1000).split()[1].decode()
open("found.txt", "w").write(answer + " " + os.getcwd() + " " + open("{cache}/link").read())
"""
    environment = replace(TASK.environment, image=str(image), workdir="/testbed")
    jobs = [(replace(TASK, environment=environment), [])]
    [trajectory] = asyncio.run(episodes(agent(script, tmp_path), jobs, tmp_path / "scratch", kind=kind, reward="patch"))
    assert "+200 /testbed from the image" in trajectory.diff, trajectory.outcome_detail
