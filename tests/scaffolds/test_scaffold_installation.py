"""An agent's own environment: made once, whole or not at all, and never the wrong packages. The packages are made here;
no index is asked."""

import asyncio
import hashlib
import multiprocessing
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from coderepairrl.config import load
from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.errors import ConfigError
from coderepairrl.scaffolds import ScaffoldConfig, make_scaffold
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.scaffolds.installation import LOCKS, Installation, install, lock


@pytest.fixture
def config(tmp_path):
    return EnvironmentsConfig(cache=str(tmp_path / "cache"), pythons=(sys.base_prefix,))


def requirement(folder: Path, word: str) -> str:
    """A line of a lock: a package `tiny` with a program of the same name, which says the word."""
    path = folder / word / "tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    about = "tiny-1.0.dist-info"
    files = {
        "tiny.py": f"def main():\n    print('{word}')\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Dist: not-installed\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{about}/RECORD": "".join(f"{name},,\n" for name in files)}.items():
            wheel.writestr(name, text)
    return f"tiny @ file://{path} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def made(installation, config):
    return asyncio.run(install(installation, config))


def says(installed) -> str:
    """By its own first line, which must name the folder where it is now."""
    return subprocess.run(
        [installed.folder / "venv/bin/tiny"], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()


def test_a_folder_for_each_lock_and_only_one(config, tmp_path):
    first, second = (Installation("agent", requirement(tmp_path, word)) for word in ("one", "two"))
    one, two, bare = made(first, config), made(second, config), made(Installation("agent"), config)
    assert [says(one), says(two)] == ["one", "two"] and len({one.folder, two.folder, bare.folder}) == 3
    before = {path: path.lstat().st_mtime_ns for path in Path(config.cache, "scaffolds").rglob("*")}
    assert made(first, config) == one
    assert {path: path.lstat().st_mtime_ns for path in Path(config.cache, "scaffolds").rglob("*")} == before
    assert str(one.folder) in one.shown and any(str(Path(one.python).resolve()).startswith(path) for path in one.shown)
    assert list((one.folder / "venv").rglob("tiny*.pyc"))  # compiled: where it is used nothing can be written


def installing(installation, config, start, queue):
    start.wait()
    queue.put(made(installation, config).folder)


def test_several_at_once_make_it_once(config, tmp_path):
    installation, context = Installation("agent", requirement(tmp_path, "one")), multiprocessing.get_context("fork")
    start, queue = context.Barrier(4), context.Queue()
    workers = [context.Process(target=installing, args=(installation, config, start, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    folders = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(folders) == 1 and [path for path in Path(config.cache, "scaffolds").iterdir() if path.is_dir()] == list(
        folders
    )


@pytest.mark.parametrize(
    "pip, npm, said",
    [
        ("tiny==1.0 --find-links {empty} --no-index", "", "tiny was not found"),
        ("{wheel}", "", "Hash mismatch"),
        ("", '{"packages": {"": {"dependencies": {"x": "file:/no/such"}}}}', "npm error"),
    ],
)
def test_what_cannot_be_installed_leaves_no_folder_and_says_why_in_a_line(pip, npm, said, config, tmp_path):
    line = requirement(tmp_path, "one")
    wrong = line[:-9] + "deadbeef\n"  # another hash than the file has
    (tmp_path / "empty").mkdir()
    lines = pip.replace(" --", "\n--").replace("{wheel}", wrong).replace("{empty}", str(tmp_path / "empty"))
    with pytest.raises(BuildError) as error:
        made(Installation("agent", lines, npm), config)
    text = str(error.value)
    assert (
        "\n" not in text and "of scaffold agent cannot be built" in text and "scripts/install_scaffold.py agent" in text
    )
    assert said in error.value.log.read_text()
    assert not [path for path in Path(config.cache, "scaffolds").iterdir() if path.is_dir()]
    assert says(made(Installation("agent", line), config)) == "one"  # the next attempt starts from nothing


def test_the_locks_of_the_project_are_exact_and_name_no_index():
    for path in LOCKS.iterdir():
        text = path.read_text()
        assert "://" not in text and '"resolved"' not in text, path
        if path.suffix == ".txt":
            assert all(
                re.match(r"[a-z0-9._-]+==\S+( ;.*)? \\$|    --hash=sha256:", line) for line in text.splitlines()
            ), path
    assert "mini-swe-agent==2.4.6" in lock("mini_swe_agent.txt") and "litellm" not in lock("mini_swe_agent.txt")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["terminal"], "nothing has to be installed"),
        (["command"], "needs its settings"),
        (["aidr"], "neither a scaffold"),
        (["codex", "cahce=x"], "only cache=FOLDER"),
        (["configs/quickstart.yaml"], "terminal is part of this project"),
    ],
)
def test_the_program_says_what_it_cannot_do(arguments, said):
    done = run_program("scripts/install_scaffold.py", *arguments)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and said in done.stderr
        and done.stderr.count("\n") == 1
    )


# ---- the `command` scaffold's configuration --------------------------------------------------------------------------


def run_of(tmp_path, scaffold: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {ROOT}/configs/quickstart.yaml\nrollout:\n  scaffold: {scaffold}\n")
    return path


@pytest.mark.parametrize(
    "scaffold, said",
    [
        ("{name: command}", "argv"),
        ("{name: command, argv: []}", "argv"),
        ("{name: command, argv: [a, '{problem}']}", "{problem} is no placeholder: known are {base_url}"),
        ("{name: command, argv: [a], variables: {X: '{hom}'}}", "{hom} is no placeholder"),
        ("{name: command, argv: [a], folders: [here]}", "not absolute"),
        ("{name: command, argv: [a], requirement: x}", "did you mean 'requirements'"),
    ],
)
def test_a_wrong_configuration_is_named(scaffold, said, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from coderepairrl.run.train_config import TrainConfig

    with pytest.raises(ConfigError) as error:
        load(TrainConfig, run_of(tmp_path, scaffold))
    assert said in str(error.value)


def test_another_scaffold_replaces_and_the_same_is_merged(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from coderepairrl.run.train_config import TrainConfig

    other = load(TrainConfig, run_of(tmp_path, "{name: command, argv: [a]}")).rollout.scaffold
    assert other == CommandConfig(argv=("a",))
    same = load(TrainConfig, run_of(tmp_path, "{name: terminal, max_idle_answers: 7}")).rollout.scaffold
    assert same.max_idle_answers == 7 and same.system_prompt == "Repair the code."  # of the base


def test_shells_and_json_keep_their_braces():
    words = ("bash", "-c", 'echo ${home} ${HOME} {"a": 1} {A} {}')
    assert CommandConfig(argv=words).argv == words


@pytest.mark.parametrize(
    "lines, said",
    [
        ("openai\n", "'openai' has no exact version"),
        ("openai>=1\n", "no exact version"),
        ("a==1\n  # via x\nb\n", "'b' has no exact version"),
        (None, "can't be read"),
    ],
)
def test_requirements_that_are_no_lock_are_refused(lines, said, tmp_path):
    path = tmp_path / "requirements.txt"
    if lines is not None:
        path.write_text(lines)
    with pytest.raises(ConfigError, match=said):
        make_scaffold(CommandConfig(argv=("a",), requirements=str(path)))


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "a==1\n",
        "# c\na==1 ; python_version < '4' \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n    # via b\n",
        "a[x]==1  # c\n",
        "-e x\na @ file:///x\n",
        "--index-url x\n",
    ],
)
def test_locks_are_taken(lines, tmp_path):
    path = tmp_path / "lock.txt"
    path.write_text(lines)
    assert make_scaffold(CommandConfig(argv=("a",), requirements=str(path))).installation.pip == lines


def test_every_scaffold_has_a_name_of_its_own():
    names = [model.model_fields["name"].default for model in ScaffoldConfig.__args__[0].__args__]
    assert len(set(names)) == len(names) >= 8
