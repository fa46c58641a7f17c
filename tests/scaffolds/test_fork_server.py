"""A fork of the server is what a process of the sandbox is, and no more; and what goes wrong stays with the task that
it happens to."""

import array
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_helpers import isolated, make_task, sandbox_config

from coderepairrl.processes import proc
from coderepairrl.sandboxes import seccomp, start_sandbox
from coderepairrl.sandboxes.own import AGENT
from coderepairrl.scaffolds.inside import fork_client, fork_server

PROBE = Path(__file__).parents[1].joinpath("programs") / "fork_probe.py"
CLIENT = Path(fork_client.__file__).read_text()
LIMITS = {"RLIMIT_DATA": 300 << 20, "RLIMIT_NPROC": 40, "RLIMIT_FSIZE": 3 << 20, "RLIMIT_CORE": 0}
SANDBOX = {"memory_mib": 300, "processes": 40, "file_size_mib": 3}


def start(folder: Path) -> subprocess.Popen:
    folder.chmod(0o755)
    (folder / "filter").write_bytes(seccomp.program())
    argv = [
        sys.executable,
        "-s",
        "-P",
        fork_server.__file__,
        str(folder / "socket"),
        str(PROBE),
        str(folder / "filter"),
    ]
    server = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOST_SECRET": "s"},
    )
    assert server.stdout.readline() == b"ready\n"
    return server


@pytest.fixture
def server(tmp_path_factory):
    """(process, the folder of its socket)."""
    folder = tmp_path_factory.mktemp("server")
    process = start(folder)
    yield process, folder
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


async def task(sandbox, folder: Path, timeout_s: float = 20, **job):
    """The result of a fork that has entered `sandbox`."""
    home, inside = sandbox.share(f"home{len(sandbox.shared)}")
    for name, text in (("client.py", CLIENT), ("job.json", json.dumps({"host_file": str(folder / "secret"), **job}))):
        (home / name).write_text(text)
        (home / name).chmod(0o666)
    sandbox.show(str(folder))
    return await sandbox.run(
        [sys.executable, "-I", "-S", f"{inside}/client.py", str(folder / "socket"), f"{inside}/job.json"],
        timeout_s=timeout_s,
        variables={"TASKS_OWN": "1"},
    )


@isolated
def test_a_fork_is_confined_like_a_command_of_the_sandbox(server, use, kind):
    process, folder = server

    async def body(sandbox):
        with socket.create_server(("127.0.0.1", 0)) as host:  # which the host has, and the sandbox doesn't see
            found = await task(
                sandbox,
                folder,
                do="tell",
                port=host.getsockname()[1],
                write=[
                    "/repo/new.txt",
                    "/new.txt",
                    "/usr/new.txt",
                    "/etc/new.txt",
                    str(folder / "new.txt"),
                    "/repo/big",
                ],
            )
        plain = await sandbox.run(
            "id -u; id -g; ls -1 / | tr '\\n' ' '; hostname; ulimit -d; for n in user mnt pid net ipc uts; do "
            "readlink /proc/self/ns/$n; done"
        )
        return found, plain, await sandbox.diff()

    found, plain, diff = use(kind, body, **SANDBOX)
    assert found.exit_code == 0, found.output
    told = json.loads(found.output)
    assert told["secret"] == f"loaded once, by {process.pid}"  # it is a fork: nothing was loaded again
    assert (told["uid"], told["gid"]) == (AGENT, AGENT) and set(told["groups"]) <= {AGENT, 65534}
    assert set(told["capabilities"]) == {"0" * 16} and told["no_new_privs"] == "1"
    assert told["limits"] == {name: [value, value] for name, value in LIMITS.items()}
    assert (
        "HOST_SECRET" not in told["variables"]
        and told["variables"]["TASKS_OWN"] == "1"
        and told["variables"]["PYTHONHASHSEED"] == "0"
    )
    assert told["descriptors"] == [0, 1, 2]
    assert told["pid"] < 100 and process.pid not in told["processes"] and told["pid"] in told["processes"]
    assert told["interfaces"] == ["lo"]
    assert told["network"] in ("ConnectionRefusedError", "OSError")  # another loopback, which in Apptainer is down
    assert told["hostname"] == "sandbox" and told["host_file"] in ("FileNotFoundError", "PermissionError")
    assert told["root"] == plain.output.splitlines()[2].rsplit("sandbox")[0].split()[: len(told["root"])]
    assert told["written"].pop("/repo/new.txt") == "1" and told["written"].pop("/repo/big") == "1"
    assert set(told["written"].values()) <= {"PermissionError", "OSError"}, told["written"]  # read-only, or not its own
    assert told["mounted"] != "0"
    assert told["run"] == f"{AGENT}\nCapEff:\t{'0' * 16}\n"
    assert "new.txt" in diff and not list(folder.glob("new.txt"))


def test_a_fork_dies_with_its_sandbox(server, use, tmp_path):
    async def body(sandbox):
        started = time.monotonic()
        result = await task(sandbox, server[1], timeout_s=2, do="sleep", mark="/repo/mark")
        return result, time.monotonic() - started, (sandbox.root / "mark").exists()

    result, seconds, was_there = use("bubblewrap", body)
    assert result.timed_out and was_there and seconds < 30
    deadline = time.monotonic() + 20
    while children(server[0].pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children(server[0].pid)


def children(pid: int) -> list[int]:
    return [int(child) for child in proc.text(pid, f"task/{pid}/children").split()]


def test_a_process_of_the_sandbox_cannot_look_into_a_fork(server, use):
    """Through /proc/PID it would reach what the host has open: the interpreter's file, for one."""

    async def body(sandbox):
        home, inside = sandbox.share("home")
        (home / "client.py").write_text(CLIENT)
        (home / "job.json").write_text(json.dumps({"do": "sleep", "mark": "/repo/mark"}))
        sandbox.show(str(server[1]))
        return await sandbox.run(f"""
            {sys.executable} -I -S {inside}/client.py {server[1]}/socket {inside}/job.json &
            while [ ! -e /repo/mark ]; do sleep 0.05; done; read fork < /repo/mark || true
            for file in exe root cwd environ fd mem maps; do
                ls -L /proc/$fork/$file/ >/dev/null 2>&1 && echo seen $file
                head -c 1 /proc/$fork/$file >/dev/null 2>&1 && echo read $file
            done
            [ -e /proc/$fork/stat ] && kill -0 $fork && echo alive""")

    assert use("bubblewrap", body).output == "alive\n"


def test_a_client_that_names_another_namespace_in_place_of_one_is_refused(server, use, monkeypatch):
    """The fork would stay in the host's own: with the host's processes, and alive after the sandbox. A namespace of its
    own it
    cannot name: it can make none (test_attacks_limits.py)."""
    clients = [CLIENT.replace(f'"{name}"', '"net"') for name in ("pid", "ipc", "uts")]

    async def body(sandbox):
        results = []
        for client in clients:
            monkeypatch.setitem(globals(), "CLIENT", client)
            results.append(await task(sandbox, server[1], do="tell"))
        return results

    for result in use("bubblewrap", body):
        assert result.exit_code == fork_server.BROKEN and "setns" in result.output, result.output


@pytest.mark.parametrize("gone", [False, True])
def test_a_fork_that_cannot_be_had_is_the_trouble_of_one_task(monkeypatch, gone):
    def none():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", none)
    ours, theirs = socket.socketpair()
    with theirs:
        if gone:
            theirs.close()
        fork_server.fork_for(ours, None, None, b"", {})
        assert ours.fileno() == -1 and (gone or json.loads(theirs.makefile().readline())["code"] == fork_server.BROKEN)


def test_its_end_is_the_tasks_end(server, use):
    async def body(sandbox):
        return [
            await task(sandbox, server[1], **job)
            for job in (
                {"do": "exit", "code": 0},
                {"do": "exit", "code": 9},
                {"do": "exit", "code": "said"},
                {"do": "raise"},
                {"do": "eat", "bytes": 1 << 30},
            )
        ]

    results = use("bubblewrap", body, **SANDBOX)
    assert [result.exit_code for result in results] == [0, 9, 1, 1, 1]
    assert (
        results[2].output == "said\n"
        and "a mistake in the agent" in results[3].output
        and "MemoryError" in results[4].output
    )


def test_many_at_once_do_not_mix(server, use):
    async def body(sandbox):
        return None

    async def one(number, scratch):
        from coderepairrl.sandboxes import SandboxConfig

        async with start_sandbox(
            SandboxConfig(scratch=str(scratch)), make_task({"number.txt": str(number)})
        ) as sandbox:
            result = await task(sandbox, server[1], do="tell", write=["/repo/x.txt"])
            return (
                json.loads(result.output)["written"],
                await sandbox.read_text("number.txt"),
                await sandbox.read_text("x.txt"),
            )

    async def all_of_them():
        return await asyncio.gather(*(one(number, server[1].parent) for number in range(12)))

    assert asyncio.run(all_of_them()) == [({"/repo/x.txt": "1"}, str(number), "x") for number in range(12)]
    use("bubblewrap", body)


def test_the_hosts_own_processes_get_nothing_from_it(server):
    """Outside of any sandbox a fork would be as mighty as the server."""
    job = server[1] / "job.json"
    job.write_text('{"do": "tell"}')
    done = subprocess.run(
        [sys.executable, "-I", "-S", fork_client.__file__, str(server[1] / "socket"), str(job)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == fork_server.BROKEN and "the client is in no sandbox" in done.stderr and not done.stdout


@pytest.mark.parametrize(
    "request_bytes, fds",
    [
        (b"", 0),
        (b"abc", 0),
        (b"\xff\xff\xff\xff", 9),
        (b"\x05\0\0\0hello", 9),
        (b"\x02\0\0\0{}", 9),
        (b"\x02\0\0\0{}", 3),
        (b"\x00\0\0\0", 9),
        (b"\x02\0\0\0", 9),
    ],
)
def test_a_request_that_is_none_harms_nobody(server, use, request_bytes, fds):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server[1] / "socket"))
        if request_bytes:
            client.sendmsg(
                [request_bytes], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * fds))] if fds else []
            )
        client.shutdown(socket.SHUT_WR)
        assert json.loads(client.makefile().readline())["code"] == fork_server.BROKEN

    async def body(sandbox):
        return await task(sandbox, server[1], do="exit", code=3)

    assert use("bubblewrap", body).exit_code == 3


def test_a_server_that_is_killed_takes_its_forks_with_it_and_they_say_so(tmp_path_factory, use):
    folder = tmp_path_factory.mktemp("server")
    process = start(folder)

    async def body(sandbox):
        working = asyncio.ensure_future(task(sandbox, folder, do="sleep", mark="/repo/mark"))
        while not (sandbox.root / "mark").exists():
            await asyncio.sleep(0.05)
        process.kill()
        first = await working
        return first, await task(sandbox, folder, do="exit", code=0)

    try:
        first, second = use("bubblewrap", body)
        assert first.exit_code == second.exit_code == fork_server.BROKEN
        assert "it ended" in first.output and "Connection refused" in second.output
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stdin.close()
        process.stdout.close()


CONNECT = """
import os, socket, sys, time
for _ in range({processes}): os.fork()
all = []
for n in range(60):
    one = socket.socket(socket.AF_UNIX); one.settimeout(5)
    try: one.connect(sys.argv[1]); {then}; all.append(one)
    except OSError: pass
time.sleep(3)
"""
FLOODS = {
    "connections that say nothing": (0, "pass"),
    "of many processes": (2, "pass"),
    "requests that never end": (0, "one.send(b'\\xff\\0\\0\\0')"),
    "connections that come again and again": (0, "one.close()"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_sandbox_gets_a_few_forks_and_its_siblings_theirs(server, use, flood, tmp_path):
    processes, then = FLOODS[flood]
    process, folder = server

    async def body(sandbox):
        sandbox.show(str(folder))
        flood = CONNECT.format(processes=processes, then=then)
        flooding = asyncio.create_task(sandbox.run([sys.executable, "-c", flood, str(folder / "socket")]))
        most, answers = 0, []
        while not flooding.done():
            most = max(most, len(children(process.pid)))
            async with start_sandbox(sandbox.config, make_task()) as sibling:
                answers.append((await task(sibling, folder, do="exit", code=3)).exit_code)
        return most, answers, (await flooding).exit_code

    most, answers, code = use("bubblewrap", body)
    assert most <= fork_server.FORKS + 1 and set(answers) == {3} and code == 0  # and the sibling's
    deadline = time.monotonic() + 20
    while children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children(process.pid)


def test_a_fork_has_no_more_system_calls_than_a_command(server, use):
    async def body(sandbox):
        return await task(sandbox, server[1], do="tell"), await sandbox.run("grep Seccomp: /proc/self/status")

    told, plain = use("bubblewrap", body)
    assert json.loads(told.output)["seccomp"] == plain.output.split()[1] == "2"


FULL = """
import array, socket, sys, time
pairs = [socket.socketpair() for _ in range(40)]
for one, _ in pairs:
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
open("full", "w").close()
time.sleep(3)
"""


def test_a_fork_waits_while_other_sandboxes_have_too_many_descriptors_on_their_way(server, tmp_path):
    """The kernel counts them by user, and all sandboxes are one."""
    _, folder = server
    config = sandbox_config("bubblewrap", tmp_path, file_size_mib=1)  # what is on its way counts as that

    async def main():
        async with start_sandbox(config, make_task()) as other, start_sandbox(config, make_task()) as sandbox:
            filling = asyncio.ensure_future(other.run([sys.executable, "-c", FULL]))
            while (await asyncio.sleep(0.05)) or not (other.root / "full").exists():
                assert not filling.done(), filling.result()
            home, inside = sandbox.share("home")
            (home / "job.json").write_text(json.dumps({"host_file": "/none", "do": "tell", "port": 1, "write": []}))
            (home / "client.py").write_text(CLIENT)
            sandbox.show(str(folder))
            words = (
                f"ulimit -n 30; exec {sys.executable} -I -S {inside}/client.py {folder / 'socket'} {inside}/job.json"
            )
            found = await sandbox.run(words, variables={"TASKS_OWN": "1"})
            return found, await filling

    found, filled = asyncio.run(main())
    assert filled.exit_code == 0 and found.exit_code == 0, (found.output, filled.output)
