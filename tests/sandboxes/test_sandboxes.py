"""What a sandbox promises, one test a promise, on real processes. Both kinds where the promise is theirs."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_helpers import FILES, both, isolated, make_task, needs_apptainer, running, sandbox_config

from coderepairrl.processes import proc
from coderepairrl.sandboxes import PathError, apptainer, start_sandbox
from coderepairrl.sandboxes.running import HeadTail

# ---- commands


@both
def test_a_command_runs_in_the_checkout_with_fixed_variables(use, kind):
    async def body(sandbox):
        shell = await sandbox.run("pwd; cat lib.py; echo to-stderr >&2; exit 3")
        words = await sandbox.run(
            [sys.executable, "-c", "import sys, os; print(sys.argv[1:], os.environ['A'], sys.prefix)", "a b"],
            variables={"A": "per call"},
        )
        environment = await sandbox.run("env")
        stdin = await sandbox.run("cat; echo end", timeout_s=5)
        return sandbox.inside, shell, words, environment.output, stdin

    inside, shell, words, environment, stdin = use(kind, body, make_task(variables={"FROM_ENVIRONMENT": "yes"}))
    assert (shell.exit_code, shell.timed_out) == (3, False)
    assert shell.output == f"{inside}\n{FILES['lib.py']}to-stderr\n"
    assert words.output == f"['a b'] per call {sys.prefix}\n"
    assert "FROM_ENVIRONMENT=yes" in environment and "PYTHONHASHSEED=0" in environment
    assert f"PATH={os.path.dirname(sys.executable)}:" in environment
    assert stdin.output == "end\n"


@both
def test_nothing_of_the_callers_variables_enters(use, kind, monkeypatch):
    monkeypatch.setenv("API_KEY", "secret-of-the-host")
    assert "secret-of-the-host" not in use(kind, lambda sandbox: sandbox.run("env; cat /proc/1/environ")).output


@isolated
def test_prompts_of_siblings_are_equal(use, kind):
    look = (
        "pwd; ls -la --time-style=full-iso | tail -n +4 | grep -v '[.]git$'; whoami; id; hostname; git log; git "
        "status --short; env | sort; echo $$"
    )
    look = look.removesuffix("; echo $$") if kind == "apptainer" else look  # its own threads take numbers, too
    first, second = (use(kind, lambda sandbox: sandbox.run(look)).output for _ in range(2))
    assert first == second and "/repo" in first and "agent" in first


@both
def test_commands_that_cannot_be_started_are_the_agents_errors(use, kind):
    async def body(sandbox):
        return [
            await sandbox.run("x" * 200_000),
            await sandbox.run("echo a\0b"),
            await sandbox.run(["no-such-program"]),
            await sandbox.run("no-such-program"),
        ]

    assert [result.exit_code for result in use(kind, body)] == [126, 126, 127, 127]


# ---- isolation


@isolated
def test_no_network(use, kind):
    server = socket.create_server(("127.0.0.1", 0))
    attempt = f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})), (socket.AF_INET, ("1.1.1.1", 53))):
    try:
        socket.socket(family).connect(address)
        print("connected", address)
    except OSError as error:
        print("refused", error.errno)
print(sorted(name for _, name in socket.if_nameindex()))
"""
    output = use(kind, lambda sandbox: sandbox.run([sys.executable, "-c", attempt])).output
    server.close()
    assert output.count("refused") == 2 and "['lo']" in output


@isolated
def test_host_files_are_invisible(use, kind, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host")
    project = Path(__file__).resolve().parents[2]
    paths = [
        secret,
        project / "coderepairrl",
        Path.home() / ".bashrc",
        Path.home() / ".ssh",
        "/etc/shadow",
        "/etc/ssl/private",
        "/var/lib",
        "/var/log",
        "/sys",
        "/home",
        f"/proc/{os.getpid()}",
    ]
    output = use(
        kind,
        lambda sandbox: sandbox.run(
            "ls -d "
            + " ".join(map(str, paths))
            + " 2>/dev/null; cat test_hidden.py; ls -A /tmp /etc/machine-id; cat /etc/hostname; ls -Am /var"
        ),
    ).output
    assert f"\n{socket.gethostname()}\n" not in output
    assert "No such file" in output  # test_hidden.py
    assert not any(f"{path}\n" in output for path in paths) and output.endswith("\ntmp\n"), output  # our own /var


@isolated
def test_the_system_is_read_only_and_without_capabilities(use, kind):
    prefix = sys.prefix
    script = (
        f"for d in / /usr /etc /dev {prefix} /usr/bin; do touch $d/x 2>/dev/null && echo WROTE $d; done; grep "
        "CapEff "
        "/proc/self/status; id -u; mount -t tmpfs t /mnt; kill -9 1; echo alive"
    )
    output = use(kind, lambda sandbox: sandbox.run(script)).output
    assert (
        "WROTE" not in output
        and "CapEff:\t0000000000000000" in output
        and "\n1000\n" in output
        and output.endswith("alive\n")
    )


@isolated
def test_tmp_is_fresh_and_bounded_and_background_processes_end_with_their_command(use, kind):
    async def body(sandbox):
        first = await sandbox.run(
            "(sleep 1; touch later.txt) & setsid sleep 300 > /dev/null & touch /tmp/mine /dev/shm/mine; ls /tmp; head "
            "-c 9M /dev/zero > /tmp/big"
        )
        await asyncio.sleep(1.5)
        return first, await sandbox.run("ls /tmp /dev/shm; ls; ps aux | grep -c 'sleep 300'")

    first, second = use(kind, body, tmp_mib=8)
    assert first.seconds < 1 and "mine" in first.output and "No space left" in first.output
    assert "mine" not in second.output and "later.txt" not in second.output


@isolated
def test_history_does_not_hold_the_hidden_tests_or_the_fix(use, kind, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "lib.py").write_text("fixed\n")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "-m", "the fix"],
    ):
        subprocess.run(["git", *words], cwd=base, check=True)
    output = use(
        kind,
        lambda sandbox: sandbox.run(
            "git log --all --oneline | wc -l; git log -p --all; cat lib.py; git status --short"
        ),
        make_task(base=str(base)),
    ).output
    assert output.startswith("1\n") and "fixed" not in output and "SECRET" not in output and "return 1" in output


# ---- limits


@both
def test_the_time_limit_kills_everything(use, kind, sleeping):
    async def body(sandbox):
        result = await sandbox.run(f"trap '' TERM; echo started; {sleeping} & {sleeping}", timeout_s=3)
        return result, running(sleeping)

    result, left = use(kind, body)
    assert result.timed_out and result.exit_code == 124 and result.seconds < 60 and left == []
    assert result.output.startswith("started\n") and "time limit" in result.output


@isolated
def test_the_time_limit_kills_a_process_that_left_its_session(use, kind, sleeping):
    async def body(sandbox):
        await sandbox.run(f"setsid setsid nohup {sleeping} >/dev/null 2>&1 & {sleeping}", timeout_s=0.4)
        return running(sleeping)

    assert use(kind, body) == []


@both
def test_a_cancelled_command_leaves_nothing(use, kind, sleeping):
    async def body(sandbox):
        command = asyncio.create_task(sandbox.run(sleeping))
        while not running(sleeping):  # the command's own time limit ends a wait for what never comes
            assert not command.done()
            await asyncio.sleep(0.05)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        return running(sleeping)

    assert use(kind, body) == []


@both
def test_a_cancelled_start_leaves_nothing(tmp_path, kind):
    config = sandbox_config(kind, tmp_path)

    async def main(delay_s):
        async def episode():
            async with start_sandbox(config, make_task()) as sandbox:
                await sandbox.run("true")

        task = asyncio.create_task(episode())
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.wait([task])

    for delay_s in (0.0, 0.001, 0.003, 0.005, 0.006, 0.008, 0.01, 0.012, 0.015, 0.02, 0.05):
        asyncio.run(main(delay_s))
    deadline = time.monotonic() + 30
    while running(str(tmp_path)) and time.monotonic() < deadline:  # what was killed may take a moment to be gone
        time.sleep(0.05)
    assert running(str(tmp_path)) == []
    assert list(tmp_path.glob("*/live/*")) == [] and list(tmp_path.glob("*/templates/*.tmp")) == []


@isolated
def test_a_fork_bomb_is_bounded(use, kind):
    async def body(sandbox):
        before = len(proc.tree(os.getpid()))  # of the machine's, other tests' are no business of this one
        bomb = asyncio.create_task(sandbox.run(":(){ :|:& };:; sleep 5", timeout_s=1.0))
        await asyncio.sleep(0.6)
        grown = len(proc.tree(os.getpid())) - before
        return grown, await bomb, await sandbox.run("echo alive")

    grown, bomb, after = use(kind, body, processes=40)
    assert grown < 120 and after.output == "alive\n" and bomb.seconds < 10


@both
def test_a_memory_hog_is_stopped(use, kind):
    result = use(
        kind,
        lambda sandbox: sandbox.run([sys.executable, "-c", "x = bytearray(400 << 20)"], timeout_s=20),
        memory_mib=200,
    )
    assert result.exit_code != 0 and "MemoryError" in result.output


@isolated
def test_many_small_processes_cannot_add_up_beyond_the_memory_limit(use, kind):
    hog = "import os, time\nfor _ in range(4): os.fork()\nx = bytearray(60 << 20)\ntime.sleep(20)\n"
    result = use(kind, lambda sandbox: sandbox.run([sys.executable, "-c", hog], timeout_s=30), memory_mib=200)
    assert result.exit_code == 137 and "memory limit" in result.output and result.seconds < 15


@both
def test_huge_output_keeps_its_head_and_tail(use, kind):
    result = use(
        kind,
        lambda sandbox: sandbox.run("echo first; head -c 50M /dev/zero | tr '\\0' x; echo; echo last"),
        output_kib=8,
    )
    assert (
        len(result.output) < 9000
        and result.output.startswith("first\n")
        and result.output.endswith("last\n")
        and "bytes cut" in result.output
    )


@both
def test_endless_output_ends_at_the_time_limit(use, kind):
    result = use(kind, lambda sandbox: sandbox.run("yes", timeout_s=0.5))
    assert result.timed_out and len(result.output) < 70_000


@both
def test_a_huge_file_is_cut(use, kind):
    async def body(sandbox):
        await sandbox.run("head -c 3M /dev/zero > big.bin")
        return (sandbox.root / "big.bin").stat().st_size

    assert use(kind, body, file_size_mib=1) == 1 << 20


def test_head_and_tail_are_exact():
    for chunks in ([b"a" * 7], [b"ab"] * 5, [b"0123456789" * 20000], [b"x"] * 1000):
        keep = HeadTail(10)
        for chunk in chunks:
            keep.add(chunk)
        data = b"".join(chunks).decode()
        assert keep.text() == (
            data if len(data) <= 10 else data[:5] + f"\n[... {len(data) - 10} bytes cut ...]\n" + data[-5:]
        )


# ---- reading and writing


@both
def test_text_goes_in_and_out(use, kind):
    async def body(sandbox):
        await sandbox.write_text("new/é.txt", "ü\r\n")
        await sandbox.write_text("/repo/lib.py", "y = 2\n")
        seen = await sandbox.run("cat lib.py; echo more >> new/é.txt; rm pkg/deep.py; touch new/other && echo ok")
        return await sandbox.read_text("/repo/new/é.txt"), await sandbox.read_text("lib.py"), seen.output

    assert use(kind, body) == ("ü\r\nmore\n", "y = 2\n", "y = 2\nok\n")


@both
def test_paths_that_cannot_be_used_are_one_line_errors(use, kind):
    paths = [
        "/etc/passwd",
        "../judge",
        "/repo/../x",
        "out/passwd",
        "out",
        "",
        "a\0b",
        "pkg",
        "lib.py/x",
        "pipe",
        "x" * 300,
        "loop",
        "\udcff",
        "binary",
        "missing",
    ]

    async def body(sandbox):
        await sandbox.run("ln -s /etc out; mkfifo pipe; printf '\\xff\\xfe' > binary; ln -s loop loop")
        messages = []
        for path in paths:
            with pytest.raises(PathError) as caught:
                await sandbox.read_text(path)
            messages.append(str(caught.value))
            if path not in ("binary", "missing"):
                with pytest.raises(PathError):
                    await sandbox.write_text(path, "x")
        return messages

    assert not any("\n" in message for message in use(kind, body))


@needs_apptainer
def test_a_container_that_ended_before_it_was_looked_at_harms_no_other(use, monkeypatch):
    """The reaper of a program's containers is told of those alone that can still be ended."""

    async def body(sandbox):
        with monkeypatch.context() as patch:
            patch.setattr(apptainer.proc, "start_of", lambda pid: None)  # what /proc says of an ended one
            first = await sandbox.run("echo first")
        return first, await sandbox.run("echo second")

    assert [result.output for result in use("apptainer", body)] == ["first\n", "second\n"]
