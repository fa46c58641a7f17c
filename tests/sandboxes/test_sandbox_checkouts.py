"""The checkouts that sandboxes start from: templates, overlays and copies, what is wrong with a machine or a task, how
much a checkout may hold."""

import asyncio
import dataclasses
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandbox_helpers import both, isolated, make_task, running, sandbox_config

from coderepairrl.config import contents
from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.sandboxes import PathError, SandboxConfig, bubblewrap, check, overlay, start_sandbox
from coderepairrl.types import Environment, Task

# ---- templates and the machine


@both
def test_siblings_share_a_template_and_not_their_files(tmp_path, kind):
    config = sandbox_config(kind, tmp_path)

    async def episode(i):
        async with start_sandbox(config, make_task()) as sandbox:
            await sandbox.write_text("lib.py", f"# {i}\n")
            await asyncio.sleep(0.02)
            return await sandbox.read_text("lib.py"), await sandbox.diff()

    async def main():
        return await asyncio.gather(*(episode(i) for i in range(8)))

    seen = asyncio.run(main())
    assert [text for text, _ in seen] == [f"# {i}\n" for i in range(8)] and all(
        f"+# {i}\n" in diff for i, (_, diff) in enumerate(seen)
    )
    assert len(list(tmp_path.glob("*/templates/*"))) == 1


def test_templates_are_deterministic_and_safe_to_build_at_once(tmp_path):
    config = SandboxConfig(kind="local", scratch=str(tmp_path))
    heads = []

    async def head():
        async with start_sandbox(config, make_task()) as sandbox:
            heads.append((await sandbox.run("git rev-parse HEAD")).output)

    threads = [threading.Thread(target=lambda: asyncio.run(head())) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    shutil.rmtree(next(tmp_path.glob("coderepairrl-*/templates")))
    asyncio.run(head())
    assert len(heads) == 5 and len(set(heads)) == 1 and len(list(tmp_path.glob("*/templates/*"))) == 1


def test_a_template_is_never_out_of_date(tmp_path):
    """A base folder that was changed below, between two programs, is another base."""
    base = tmp_path / "base" / "deep"
    base.mkdir(parents=True)
    (base / "a.py").write_text("one")
    task = dataclasses.replace(
        make_task(), environment=dataclasses.replace(make_task().environment, base=str(base.parent))
    )

    async def read():
        contents.traces.cache_clear()
        async with start_sandbox(SandboxConfig(kind="local", scratch=str(tmp_path / "scratch")), task) as sandbox:
            return await sandbox.read_text("deep/a.py")

    assert asyncio.run(read()) == "one"
    (base / "a.py").write_text("two")
    assert asyncio.run(read()) == "two"


@both
def test_a_larger_base_keeps_modes_links_and_ignored_files(use, kind, tmp_path):
    base = tmp_path / "base"
    for i in range(400):
        (base / f"d{i % 20}").mkdir(parents=True, exist_ok=True)
        (base / f"d{i % 20}/f{i}.py").write_text(f"{i}\n")
    (base / "tool").write_text("#!/bin/sh\necho tool\n")
    (base / "tool").chmod(0o755)
    (base / "link").symlink_to("tool")
    (base / ".gitignore").write_text("built\n")
    (base / "built").write_text("compiled\n")

    async def body(sandbox):
        result = await sandbox.run("./link; cat built; git status --short; ls d3 | wc -l")
        empty = await sandbox.diff()
        await sandbox.run("rm -r d3; echo x > d4/new.py; echo y >> d5/f5.py")
        return result.output, empty, (await sandbox.diff()).count("diff --git")

    assert use(kind, body, make_task({"lib.py": "1\n"}, base=str(base))) == ("tool\ncompiled\n20\n", "", 22)


def test_wrong_tasks_are_task_errors(tmp_path):
    config = SandboxConfig(scratch=str(tmp_path), kind="local")

    async def start(task):
        async with start_sandbox(config, task):
            pass

    for task, words in (
        (make_task(base=str(tmp_path / "nowhere")), "does not exist"),
        (make_task({"../x": ""}), "not inside"),
        (make_task({".git/config": ""}), "not inside"),
    ):
        with pytest.raises(TaskError, match=words):
            asyncio.run(start(task))
    wrong = Task("t", "", Environment("e", None, "/no/python", ()), {}, {}, (), (), (), "")
    with pytest.raises(TaskError, match="does not answer"):
        config = SandboxConfig(scratch=str(tmp_path))
        asyncio.run(start(wrong))


def test_check_names_cause_and_remedy(tmp_path, monkeypatch):
    check(SandboxConfig(scratch=str(tmp_path)))
    left = next(tmp_path.glob("coderepairrl-*")) / "live" / f"{socket.gethostname()}-4000000-abc"
    left.mkdir()
    check(SandboxConfig(scratch=str(tmp_path)))
    assert not left.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError, match="set sandbox.scratch"):
        check(SandboxConfig(scratch=str(tmp_path / "file")))
    bubblewrap._tool.cache_clear()
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None if name == "bwrap" else f"/usr/bin/{name}")
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        check(SandboxConfig(scratch=str(tmp_path)))
    bubblewrap._tool.cache_clear()


def test_local_warns_once(use, caplog):
    from coderepairrl.sandboxes.local import _warn_once

    _warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            use("local", lambda sandbox: sandbox.run("true"))
    assert sum("isolates nothing" in record.message for record in caplog.records) == 1


def test_a_broken_sandbox_is_an_infrastructure_error(use):
    async def body(sandbox):
        shutil.rmtree(sandbox.root)
        await sandbox.run("true")

    with pytest.raises(SandboxError, match="broke before the command ran"):
        use("bubblewrap", body)


@isolated
def test_a_killed_program_leaves_no_process_and_no_mount(tmp_path, kind, sleeping):
    program = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from coderepairrl.sandboxes import start_sandbox, templates
from sandbox_helpers import make_task, sandbox_config
if {kind!r} == "overlay":
    templates.OVERLAY_FROM = -1
async def main():
    async with start_sandbox(sandbox_config({kind!r}, {str(tmp_path)!r}), make_task()) as sandbox:
        await sandbox.run("echo up > up; setsid " + os.environ["SLEEP"] + " & " + os.environ["SLEEP"])
asyncio.run(main())
"""
    process = subprocess.Popen(  # which has the command not in its own command line, by which it is looked for
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], env=os.environ | {"SLEEP": sleeping}
    )
    deadline = time.monotonic() + 60
    while not running(sleeping) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(sleeping)
    process.kill()
    process.wait()
    while (running(sleeping) or running(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (
        running(sleeping) == []
        and running(str(tmp_path)) == []
        and str(tmp_path) not in Path("/proc/mounts").read_text()
    )
    check(sandbox_config("local", tmp_path))
    assert list(tmp_path.glob("*/live/*")) == []


@pytest.mark.skipif(os.getuid() != 0, reason="is about root; other users take the other path in every test")
def test_a_normal_user_gets_the_same_sandbox(tmp_path):
    """The same code as another user: needs a Python that `nobody` may read, with this environment's packages."""
    project, packages = Path(__file__).resolve().parents[2], next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    python = shutil.which("python3", path="/usr/bin")
    program = """
import asyncio, sys
from coderepairrl import sandboxes
from coderepairrl.sandboxes import *
from coderepairrl.types import *
task = Task("t", "", Environment("e", None, "/usr/bin/python3", ()), {"lib.py": "x = 1\\n"}, {}, (), (), (), "")
async def main():
    config = SandboxConfig(scratch=sys.argv[1], processes=30)
    check(config)
    sandboxes.templates.OVERLAY_FROM = -1
    async with start_sandbox(config, task) as sandbox:
        print(type(sandbox.live.overlay).__name__)
        look = "id -u; grep CapEff /proc/self/status; touch /x /dev/x; "
        result = await sandbox.run(look + "echo y >> lib.py; mkdir locked; touch locked/z; chmod 000 locked")
        bomb = await sandbox.run(":(){ :|:& };:; sleep 3", timeout_s=1)
        print(result.output, await sandbox.diff(), bomb.seconds < 8)
    import os
    print(os.listdir(sys.argv[1] + "/coderepairrl-65534/live"))
asyncio.run(main())
"""
    scratch = Path("/tmp") / f"crl-user-{os.getpid()}"
    scratch.mkdir()
    os.chown(scratch, 65534, 65534)
    try:
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{project}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}
        probe = subprocess.run(
            [*drop, python, "-c", "import coderepairrl.config"], env=environment, capture_output=True, cwd="/"
        )
        if probe.returncode:
            pytest.skip("no Python that another user can read has this project's packages")
        done = subprocess.run(
            [*drop, python, "-c", program, str(scratch)],
            env=environment,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=60,
        )
    finally:
        shutil.rmtree(scratch)
    assert done.returncode == 0, done.stderr
    kind, _, output = done.stdout.partition("\n")
    assert (
        kind in ("Overlay", "NoneType")
        and output.startswith("1000\nCapEff:\t0000000000000000\n")
        and output.count("Read-only file system") == 2
    )
    assert "+y\n" in done.stdout and done.stdout.endswith("True\n[]\n")


# ---- where the checkout is, how much it may hold, what it costs


@isolated
def test_the_checkout_is_where_the_environment_says(use, kind):
    task = make_task()
    task = dataclasses.replace(task, environment=dataclasses.replace(task.environment, workdir="/testbed"))

    async def body(sandbox):
        await sandbox.write_text("/testbed/lib.py", "y = 2\n")
        shown = await sandbox.run("pwd; cat /testbed/lib.py; ls -d /repo")
        with pytest.raises(PathError, match="outside"):
            await sandbox.read_text("/repo/lib.py")
        return sandbox.inside, shown.output, await sandbox.diff()

    inside, output, diff = use(kind, body, task)
    assert (
        inside == "/testbed"
        and output.startswith("/testbed\ny = 2\n")
        and "No such file" in output
        and "+y = 2\n" in diff
    )


@both
def test_a_full_disk_is_prevented_however_many_files_it_takes(use, kind):
    async def body(sandbox):
        many = await sandbox.run("i=0; while :; do i=$((i+1)); head -c 300000 /dev/zero > junk$i; done", timeout_s=60)
        return many, await sandbox.run("rm -f junk*; echo cleaned"), await sandbox.diff()

    many, after, diff = use(kind, body, disk_mib=10)
    assert many.exit_code == 137 and "disk limit of 10 MiB" in many.output and not many.timed_out
    assert (after.output, diff) == ("cleaned\n", "")


@both
def test_empty_files_fill_a_disk_too(use, kind):
    result = use(
        kind,
        lambda sandbox: sandbox.run(
            [sys.executable, "-c", "import itertools\nfor i in itertools.count(): open(f'f{i}', 'w').close()"],
            timeout_s=60,
        ),
        disk_mib=4,
    )
    assert result.exit_code == 137 and "disk limit" in result.output


def test_an_overlay_writes_down_only_what_changes_and_is_mounted_nowhere_else(tmp_path, monkeypatch):
    if reason := overlay.why_no_overlay(tmp_path):
        pytest.skip(reason)
    base = tmp_path / "base"
    base.mkdir()
    for i in range(400):
        (base / f"f{i}").write_text(f"{i}\n")

    async def body():
        async with start_sandbox(SandboxConfig(scratch=str(tmp_path)), make_task({}, base=str(base))) as sandbox:
            await sandbox.run("echo x > new; rm f7; echo y > f8; mkdir d; mv f9 d/f9")
            folder = sandbox.folder
            seen = (
                sorted(path.name for path in (folder / "upper").rglob("*")),
                list((folder / "checkout").iterdir()),
                await sandbox.diff(),
            )
            text = await sandbox.read_text("d/f9")
            return folder, sandbox.live.overlay.holder.pid, seen, text

    folder, holder, (upper, outside, diff), text = asyncio.run(body())
    assert (
        upper == ["d", "f7", "f8", "f9", "f9", "new"]
        and outside == []
        and diff.count("diff --git") == 5
        and text == "9\n"
    )
    assert (
        not folder.exists()
        and not Path(f"/proc/{holder}").exists()
        and str(tmp_path) not in Path("/proc/mounts").read_text()
    )


def test_a_large_checkout_is_a_copy_where_no_overlay_can_be(use, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for i in range(400):
        (base / f"f{i}").write_text(f"{i}\n")

    async def body(sandbox):
        await sandbox.run("echo x >> f8")
        return sandbox.live.overlay, sandbox.live.written, await sandbox.diff()

    overlay, written, diff = use("bubblewrap", body, make_task({}, base=str(base)), overlay=False)
    assert overlay is None and written.name == "checkout" and "+x\n" in diff


def test_files_that_the_base_tracks_belong_to_the_commit_although_they_are_ignored(use, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name, text in {"lib.py": "a\n", "kept.log": "b\n", "other.log": "built\n", ".gitignore": "*.log\n"}.items():
        (base / name).write_text(text)
    for words in (["init", "-q"], ["add", "-f", "lib.py", "kept.log", ".gitignore"]):
        subprocess.run(["git", *words], cwd=base, check=True)

    async def body(sandbox):
        await sandbox.run("echo more >> kept.log; echo more >> other.log")
        return await sandbox.diff()

    diff = use("bubblewrap", body, make_task({}, base=str(base)))
    assert diff.count("diff --git") == 1 and "kept.log" in diff
