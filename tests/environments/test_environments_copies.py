"""No sandbox shows another version of the project under repair: what is found, what is covered, what is refused."""

import asyncio
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pluggy
import pytest
from environments_helpers import INSTALL, PYTHON, built, git, in_sandbox
from sandbox_helpers import needs_apptainer

from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.environments.copies import find
from coderepairrl.environments.runner import Needs, make_runner
from coderepairrl.environments.sources import remove_copies
from coderepairrl.errors import TaskError
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.types import Environment, Recipe, Task

CODE = "".join(f"def function_{n}(first, second):\n    return first * {n} + second\n\n\n" for n in range(12))
LATER = CODE.replace("* 3 +", "* 4 +") + "def one_more(first):\n    return first\n"
OTHER = "".join(f"class Other{n}:\n    name = 'of something else {n}'\n\n\n" for n in range(12))
SITE = "env/lib/python3.11/site-packages"
PROJECT = {
    "pyproject.toml": '[project]\nname = "Some.Thing"\nversion = "1"\n',
    "src/thing/__init__.py": "",
    "src/thing/core.py": CODE,
    "src/thing/keys.py": CODE.replace("function", "key"),
    "src/thing/rest.py": CODE.replace("function", "rest"),
    "src/lone.py": CODE.replace("function", "lone"),
    "tests/test_thing.py": "import thing\n",
}
LONE = LATER.replace("function", "lone")
PACKAGE = {"__init__.py": "", "core.py": LATER}
METADATA = "Metadata-Version: 2.1\nName: some_thing\nVersion: 2\n"


def inside(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


HELD = {  # what lies about -> what of it is found
    "the package of a later release": (inside(f"{SITE}/thing", PACKAGE), {f"{SITE}/thing/"}),
    "the same, rewritten": (inside(f"{SITE}/thing", {"__init__.py": "", "core.py": OTHER + CODE[:300]}), set()),
    "a small one": ({f"{SITE}/thing/__init__.py": "value = 2\n"}, {f"{SITE}/thing/"}),
    "without sources": ({f"{SITE}/thing/core.cpython-311-x86_64-linux-gnu.so": "\x7fELF"}, {f"{SITE}/thing/"}),
    "vendored by a tool": (inside(f"{SITE}/tool/_vendor/thing", PACKAGE), {f"{SITE}/tool/_vendor/thing/"}),
    "vendored under another name": (
        inside(
            f"{SITE}/tool/borrowed",
            {name.rpartition("/")[2]: text for name, text in PROJECT.items() if "src/thing" in name},
        ),
        {f"{SITE}/tool/borrowed/"},
    ),
    "far from any interpreter": (
        inside("share/sdk/third_party/thing/src/thing", PACKAGE),
        {"share/sdk/third_party/thing/"},
    ),
    "a module": (
        {f"{SITE}/lone.py": LONE, f"{SITE}/__pycache__/lone.cpython-311.pyc": "x"},
        {f"{SITE}/lone.py", f"{SITE}/__pycache__/lone.cpython-311.pyc"},
    ),
    "a module, vendored": ({f"{SITE}/tool/_lone.py": LONE}, {f"{SITE}/tool/_lone.py"}),
    "its bytecode alone": (
        {f"{SITE}/__pycache__/lone.cpython-311.pyc": "x"},
        {f"{SITE}/__pycache__/lone.cpython-311.pyc"},
    ),
    "a distribution of its name": (
        {
            f"{SITE}/some_thing-2.dist-info/METADATA": METADATA,
            f"{SITE}/some_thing-2.dist-info/RECORD": "new/core.py,,\n",
            f"{SITE}/new/core.py": OTHER,
        },
        {f"{SITE}/new/"},
    ),
    "an egg's": (
        {
            f"{SITE}/some_thing-2.egg-info/PKG-INFO": METADATA,
            f"{SITE}/some_thing-2.egg-info/top_level.txt": "new\n",
            f"{SITE}/new/core.py": OTHER,
        },
        {f"{SITE}/new/"},
    ),
    "an editable one": (
        {
            f"{SITE}/some_thing-2.dist-info/METADATA": METADATA,
            f"{SITE}/__editable__.some_thing-2.pth": "/repo/src\n",
            f"{SITE}/some_thing-2.dist-info/RECORD": "__editable__.some_thing-2.pth,,\n",
        },
        set(),
    ),
    "another module of that name": ({f"{SITE}/schema/lone.py": OTHER, f"{SITE}/schema/thing/core.py": OTHER}, set()),
    "stubs of it": ({f"{SITE}/typeshed/thing/core.pyi": "def f() -> int: ...\n"}, set()),
    "a source distribution": (
        {"share/some_thing-2.tar.gz": "x", "share/thing_more-2.tar.gz": "x"},
        {"share/some_thing-2.tar.gz"},
    ),
    "its tests' names": ({f"{SITE}/tests/__init__.py": OTHER, f"{SITE}/tests/test_thing.py": OTHER}, set()),
}


def lay(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", HELD)
def test_what_is_found(tmp_path, name):
    files, expected = HELD[name]
    checkout, around = lay(tmp_path / "checkout", PROJECT), lay(tmp_path / "around", files)
    assert {path.removeprefix(f"{around}/") for path in find(str(checkout), (str(around),))} == expected


@pytest.mark.parametrize(
    ("name", "member", "text", "found"),
    [
        ("thing-2-py3-none-any.whl", "thing/core.py", LATER, True),
        ("bundle.zip", "vendored/thing/core.py", LATER, True),
        ("program.pyz", "_lone.py", LONE, True),
        ("other.whl", "thing/core.py", OTHER, False),
    ],
)
def test_archives(tmp_path, name, member, text, found):
    checkout = lay(tmp_path / "checkout", PROJECT)
    (tmp_path / "around").mkdir()
    with zipfile.ZipFile(tmp_path / "around" / name, "w") as archive:
        archive.writestr(member, text)
    assert bool(find(str(checkout), (str(tmp_path / "around"),))) == found


def test_what_a_build_leaves_in_the_checkout(tmp_path):
    left = {
        "build/lib/thing/core.py": CODE,
        "build/lib/thing/__init__.py": "",
        "src/thing/__pycache__/core.cpython-311.pyc": "x",
        "out.txt": "log\n",
    }
    checkout = lay(tmp_path, PROJECT | left)
    assert set(remove_copies(checkout, set(PROJECT))) == {"build/lib/thing", "src/thing/__pycache__"}
    assert {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()} == {*PROJECT, "out.txt"}


# ---- what a sandbox shows

KINDS = pytest.mark.parametrize("kind", ["bubblewrap", pytest.param("apptainer", marks=needs_apptainer)])


@KINDS
def test_what_a_sandbox_covers(tmp_path, kind):
    """An interpreter of its own, with one copy that is imported and others that lie about."""
    checkout = lay(tmp_path / "checkout", PROJECT)
    prefix = tmp_path / "env"
    asyncio.run(_venv(prefix))
    (site,) = (prefix / "lib").glob("python*/site-packages")
    lay(site, inside("thing", PACKAGE) | inside("tool/_vendor/thing", PACKAGE) | {"lone.py": LONE, "kept.py": OTHER})
    environment = Environment("covered", str(checkout), str(prefix / "bin/python"), ())
    ask = "import importlib.util as u; print([u.find_spec(n) is not None for n in ('thing.core', 'kept')])"
    words = f'cd /; python -c "{ask}"; cat {site}/lone.py {site}/tool/_vendor/thing/core.py; touch {site}/thing/x; true'

    async def main():
        task = Task("t", "", environment, {}, {}, (), (), (), "")
        async with start_sandbox(SandboxConfig(kind=kind, scratch=str(tmp_path / "scratch")), task) as sandbox:
            return (await sandbox.run(words)).output

    said = asyncio.run(main())
    assert "[False, True]" in said and "function_" not in said and "lone_" not in said
    assert "Read-only file system" in said


async def _venv(folder):
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "venv", "--without-pip", str(folder))
    assert await process.wait() == 0


# ---- what is refused where it is built


@pytest.fixture
def setting(tmp_path):
    folder = lay(tmp_path / "mirrors/me/thing", PROJECT)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "base")
    recipe = Recipe("git:me/thing", git(folder, "rev-parse", "HEAD"), PYTHON)
    config = EnvironmentsConfig(
        cache=str(tmp_path / "cache"), mirrors=(str(tmp_path / "mirrors/{owner}/{name}"),), pythons=(sys.base_prefix,)
    )
    return Environment("thing", None, "", ("{python}",), recipe=recipe), config


PUT = """site=$(python -c 'import site; print(site.getsitepackages()[0])'); """


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (PUT + "cp -r src/thing $site/", "its packages hold thing, the project itself"),
        (PUT + "cp src/lone.py $site/", "its packages hold lone.py, the project itself"),
        (
            PUT
            + "mkdir -p $site/some_thing-2.dist-info $site/new; "
            + "printf 'Name: some-thing\\n' > $site/some_thing-2.dist-info/METADATA; "
            "echo new/a.py,, > $site/some_thing-2.dist-info/RECORD; echo 1 > $site/new/a.py",
            "its packages hold new, the project itself",
        ),
        (PUT + "mkdir $site/tool; cp -r src/thing $site/tool/", ""),
        (INSTALL, ""),
    ],
)
def test_a_build_that_holds_the_project_is_refused(setting, command, cause):
    environment, config = setting
    environment = replace(environment, recipe=replace(environment.recipe, build=(command,)))
    if not cause:
        made = built(environment, config)
        assert ("covered in sandboxes" in (Path(made.base).parent / "build.log").read_text()) == ("tool" in command)
        return
    with pytest.raises(BuildError, match=cause):
        built(environment, config)


def test_an_image_says_where_copies_are(image_root, tmp_path):
    image = tmp_path / "image"
    shutil.copytree(image_root, image, symlinks=True)
    shutil.rmtree(image / "testbed/.git")
    lay(image / "testbed", PROJECT)
    lay(image, inside("opt/miniconda3/pkgs/thing-2/site-packages/thing", PACKAGE) | {"opt/kept/core.py": OTHER})
    made = built(
        Environment("imaged", None, "", ("{python}",), image=str(image)),
        EnvironmentsConfig(cache=str(tmp_path / "cache")),
    )
    places = "opt/*/core.py opt/miniconda3/pkgs/*/*/*/core.py testbed/src/thing/core.py"
    look = f"cd /; for f in {places}; do [ -s $f ] && echo $f; done; true"
    assert in_sandbox(made, look, tmp_path).split() == ["opt/kept/core.py", "testbed/src/thing/core.py"]


@pytest.mark.parametrize(
    ("project", "needs", "who"),
    [("pluggy", (), "pytest"), ("pytest", (), "pytest"), ("markupsafe", ("jinja2",), "jinja2")],
)
def test_what_the_tests_runner_needs_is_refused_by_name(tmp_path, project, needs, who):
    checkout = lay(tmp_path / "checkout", PROJECT)
    with pytest.raises(TaskError, match=f"{project}: {who} of the environment need the project itself"):
        make_runner(str(checkout), project, Needs(packages=needs), tmp_path / "cache")


def test_what_the_runner_vendors_is_refused_by_name(tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(os.path.dirname(pluggy.__file__), checkout / "pluggy")
    with pytest.raises(TaskError, match=r"another: the environment of its tests holds .*/pluggy/"):
        make_runner(str(checkout), "another", Needs(), tmp_path / "cache")
