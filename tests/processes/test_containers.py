"""A process in an image, with the real Apptainer: what goes in, what comes out, and that nothing stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from coderepairrl.errors import EngineError
from coderepairrl.processes import keeper
from coderepairrl.processes.containers import in_image, sealed
from coderepairrl.processes.starting import ends_with_parent

needs_apptainer = pytest.mark.skipif(not shutil.which("apptainer"), reason="Apptainer is not installed")
PROGRAMS = ("bash", "cat", "env", "sleep", "readlink", "pwd")
# Ends on SIGTERM; the sleep in a session of its own is what a kill by process group would miss.
TREE = "trap 'echo asked to end; exit 7' TERM; setsid sleep 1111 & (sleep 1111 & wait) & echo ready; wait"


@pytest.fixture(scope="session")
def image(tmp_path_factory) -> Path:
    """A SIF of a few MB, of this machine's own programs and the libraries that they name."""
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    for name in ("proc", "sys", "dev", "tmp", "var/tmp", "etc", "root", "home", "opt/venv/bin", "usr/bin"):
        (root / name).mkdir(parents=True)
    for name in (*PROGRAMS, "setsid"):
        program = shutil.which(name)
        for needed in [
            program,
            *(word for word in subprocess.check_output(["ldd", program], text=True).split() if word.startswith("/")),
        ]:
            inside = root / ("usr/bin/" + name if needed == program else needed.lstrip("/"))
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(needed, inside)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/sh").symlink_to("bash")
    (root / "opt/venv/bin/python").symlink_to("/usr/bin/bash")  # stands for the image's interpreter
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    subprocess.run(["apptainer", "-q", "build", folder / "small.sif", root], check=True)
    return folder / "small.sif"


def run(argv: list[str], **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(argv, env=os.environ | variables, capture_output=True, text=True, timeout=60)


@pytest.fixture
def start():
    """Starts a command and returns when it has said that it is ready; a test that fails leaves nothing either."""
    started = []

    def function(argv: list[str]) -> subprocess.Popen:
        started.append(
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield function
    for process in started:
        process.kill()


def below(process: subprocess.Popen) -> list[psutil.Process]:
    """All its descendants: the keeper, Apptainer's own processes, what runs inside, what mounts the image."""
    return psutil.Process(process.pid).children(recursive=True)


def mounts_of(image: Path) -> set[str]:
    """What FUSE and the kernel hold of this image, with the ids that tell one mount from the next. Other tests' images
    come and go meanwhile."""
    fuse = {
        f"squashfuse {process.pid}"
        for process in psutil.process_iter(["name"])
        if process.info["name"].startswith("squashfuse") and opened(process, image)
    }
    return fuse | {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(image) in line}


def opened(process: psutil.Process, path: Path) -> bool:
    try:
        return any(found.path == str(path) for found in process.open_files())
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; for them a minute is waited, though it is a matter of milliseconds."""
    deadline = time.monotonic() + 60
    while left := [process for process in processes if lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def test_without_an_image_the_command_is_as_it_was():
    assert in_image(None, ["x", "y"], binds=["/somewhere"]) == ["x", "y"]
    assert sealed(None) == []


@needs_apptainer
def test_missing_image_is_named():
    with pytest.raises(EngineError, match="/no/such.sif does not exist: build it"):
        in_image("/no/such.sif", ["true"])


def test_missing_apptainer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="apptainer is not on this node"):
        in_image(str(tmp_path), ["true"])


@needs_apptainer
def test_arguments_variables_binds_exit_code(image, tmp_path):
    inside = tmp_path / "a folder"
    inside.mkdir()
    (inside / "file").write_text("bound")
    nasty = json.dumps({"a": "$(id) `id` \"quoted\" 'x', y"})
    script = (
        'printf "%s\\n" "$1" "$GPUS" "$NASTY" "${CC-unset}" "${LD_PRELOAD-unset}"; cat "$2/file"; echo '
        'written > "$2/'
        'out"; echo left > /dev/shm/x; exit 41'
    )
    shm = tmp_path / "shm"
    shm.mkdir()
    result = run(
        in_image(
            str(image), ["bash", "-c", script, "_", nasty, str(inside)], binds=[inside, f"{shm}:/dev/shm", inside]
        ),
        GPUS="0,1",
        NASTY=nasty,
        CC="the-node's",
        LD_PRELOAD="",
    )
    assert result.stdout.splitlines() == [nasty, "0,1", nasty, "unset", "unset", "bound"], result.stderr
    assert result.returncode == 41
    assert (inside / "out").read_text() == "written\n" and (shm / "x").read_text() == "left\n"


@needs_apptainer
def test_interpreter_and_folder_are_those_inside(image, tmp_path):
    result = subprocess.run(
        in_image(str(image), [sys.executable, "-c", 'echo "$BASH $PWD"; echo "$0"', sys.executable], binds=[tmp_path]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout == f"/opt/venv/bin/python {tmp_path}\n/opt/venv/bin/python\n", result.stderr


@needs_apptainer
def test_process_sees_the_image_and_not_the_node(image):
    result = run(
        in_image(str(image), ["bash", "-c", "cat /proc/self/mountinfo; [ -e /usr/bin/setpriv ] && echo the node"])
    )
    root = next(line for line in result.stdout.splitlines() if line.split()[4] == "/")
    assert "apptainer" in root and "the node" not in result.stdout, result.stdout + result.stderr
    result = run(in_image(str(image), ["bash", "-c", "echo x > /usr/bin/new"]))
    assert result.returncode and "Read-only" in result.stderr


@needs_apptainer
@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_reaches_what_is_inside(image, start, whole_group):
    before = mounts_of(image)
    process = start(in_image(str(image), ["bash", "-c", TREE]))
    tree = below(process)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output == "asked to end\n" and process.returncode == 7  # once, and its own exit code
    assert not any(found.is_running() for found in tree) and not mounts_of(image) - before


@needs_apptainer
@pytest.mark.parametrize("options", [[], ["--userns"]], ids=["as this user", "as a user who may not mount"])
@pytest.mark.parametrize("victim", ["caller's child", "its group", "apptainer", "first inside", "parent"])
def test_sigkill_leaves_nothing(image, start, victim, options):
    before = mounts_of(image)
    argv = [*ends_with_parent(signal.SIGKILL), *in_image(str(image), ["bash", "-c", TREE], options=options)]
    parent = (
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"] if victim == "parent" else []
    )
    process = start([*parent, *argv])
    tree = below(process)
    assert len(tree) >= 6  # keeper, Apptainer, its init, shells; the sleeps may still be to come
    assert not options or mounts_of(image) - before  # by FUSE, whose process is not in Apptainer's group
    if victim == "its group":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "apptainer":
        next(found for found in tree if found.cmdline()[0].startswith("Apptainer")).kill()
    elif victim == "first inside":
        next(found for found in tree if found.name() == "bash").kill()
    else:
        process.kill()
    assert process.wait(60) in (-9, 137)
    assert not living(tree)
    assert not mounts_of(image) - before


@needs_apptainer
def test_sigusr2_to_every_process_ends_none(image, start):
    process = start([*ends_with_parent(signal.SIGKILL), *in_image(str(image), ["bash", "-c", TREE])])
    tree = below(process)
    for found in [psutil.Process(process.pid), *(found for found in tree if found.name() != "sleep")]:
        found.send_signal(signal.SIGUSR2)
    process.terminate()
    assert process.communicate(timeout=60)[0] == "asked to end\n" and process.returncode == 7
    assert not living(tree)


def test_keeper_says_what_it_could_not_start():
    result = run([sys.executable, "-I", keeper.__file__, "/no/such/program"])
    assert (
        result.returncode == 127
        and result.stderr == "error: /no/such/program could not be started: No such file or directory\n"
    )


def test_keeper_ends_orphans_of_a_command_that_has_ended():
    result = run(
        [sys.executable, "-I", keeper.__file__, "bash", "-c", "setsid sleep 1111 > /dev/null 2>&1 & echo $!; exit 5"]
    )
    assert result.returncode == 5 and not psutil.pid_exists(int(result.stdout))


def test_keeper_tells_the_signal_that_ended_the_command():
    assert run([sys.executable, "-I", keeper.__file__, "bash", "-c", "kill -KILL $$"]).returncode == 137
