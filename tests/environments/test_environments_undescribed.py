"""Projects that no tool can install, since they do not say what they consist of, are put on the path, and that is said.
Built for real, with packages of the registry."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_helpers import sandbox_config

from coderepairrl.environments import BuildError, EnvironmentsConfig, build, instead
from coderepairrl.environments.cache import StepError
from coderepairrl.environments.undescribed import is_undescribed, requirements_of
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.tasks.build_rows import BUILD_TOOLS, INSTALL
from coderepairrl.types import Environment, Recipe, Task

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CODE = {"alpha/__init__.py": "", "beta/__init__.py": "value = 7\n"}
PROJECT = """[project]
name = "x"
version = "1"
dependencies = ["six==1.16.0"]
[project.optional-dependencies]
more = ["toolz==1.0.0"]
"""
SETUP = "import setuptools\nsetuptools.setup(name='x', version='1', install_requires=['six==1.16.0'])\n"


def backend(requirement, module):
    return f'[build-system]\nrequires = ["{requirement}"]\nbuild-backend = "{module}"\n'


UNDESCRIBED = {  # files beside CODE -> (requirements, how many steps were done otherwise)
    "modules side by side, described by nothing": ({"one.py": "", "two.py": "", "pyproject.toml": ""}, (".",), 2),
    "packages side by side": ({"pyproject.toml": PROJECT}, (".[more]",), 1),
    "setup.cfg": (
        {"setup.cfg": "[metadata]\nname = x\n[options]\ninstall_requires =\n    six==1.16.0\n", "pyproject.toml": ""},
        (".",),
        2,
    ),
    "no description, but requirements": ({"requirements.txt": "six==1.16.0\n"}, (".",), 2),
    "no description": ({}, ("-e .", "six==1.16.0"), 2),
    "hatchling": ({"pyproject.toml": PROJECT + backend("hatchling", "hatchling.build")}, (".", "editables"), 1),
    "flit": (
        {
            "pyproject.toml": PROJECT.replace('"1"', '"1"\ndescription = "d"')
            + backend("flit_core", "flit_core.buildapi")
        },
        (".",),
        1,
    ),
    "poetry": ({"pyproject.toml": PROJECT + backend("poetry-core", "poetry.core.masonry.api")}, (".",), 1),
}
BROKEN = {  # what cannot be built for another reason, or whose requirements only a build would tell
    "setup.py": ({"setup.py": SETUP}, "Multiple top-level"),
    "dynamic": (
        {"pyproject.toml": PROJECT.replace('dependencies = ["six==1.16.0"]', 'dynamic = ["dependencies"]')},
        "Multiple top-level",
    ),
    "an error": ({"setup.py": "raise ValueError('no compiler')\n" + SETUP}, "no compiler"),
}


def make(tmp_path, files, requirements):
    """(environment, configuration)"""
    folder = tmp_path / "mirrors/me/x"
    for name, text in (CODE | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "base"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    recipe = Recipe("git:me/x", commit, PYTHON, requirements=(*requirements, *BUILD_TOOLS), build=(INSTALL,))
    return Environment("x", None, "", ("{python}",), recipe=recipe), EnvironmentsConfig(
        cache=str(tmp_path / "cache"), mirrors=(f"{tmp_path}/mirrors/{{owner}}/{{name}}",), pythons=(sys.base_prefix,)
    )


@pytest.mark.parametrize("case", UNDESCRIBED)
def test_a_project_that_cannot_be_installed_is_on_the_path_with_what_it_requires_and_that_is_said(tmp_path, case):
    files, requirements, steps = UNDESCRIBED[case]
    made = asyncio.run(build(*make(tmp_path, files, requirements)))
    said = instead(made)
    assert "the checkout is on Python's path instead" in said and INSTALL in said and said.count("; ") + 1 >= steps
    assert ("resolved without the project" in said) == (steps == 2)
    built = Path(made.base).parent
    assert json.loads((built / "record.json").read_text())["instead"] == said and "== " in (
        log := (built / "build.log").read_text()
    )
    assert all(part in log for part in said.split("; ")) and "\n" not in said

    async def look():
        task = Task("t", "", made, {}, {}, (), (), (), "")
        async with start_sandbox(sandbox_config("bubblewrap", tmp_path / "scratch"), task) as sandbox:
            return (
                await sandbox.run(
                    "cd /; python -c 'import beta; print(beta.value, beta.__file__)'; pip list 2>/dev/null"
                )
            ).output

    output = asyncio.run(look())
    assert output.startswith("7 /repo/beta/__init__.py\n"), output
    wanted = [] if case.startswith("modules") else ["six 1.16.0"] + ["toolz 1.0.0"] * (requirements == (".[more]",))
    assert all(name in " ".join(output.split()) for name in wanted), output


@pytest.mark.parametrize("case", BROKEN)
def test_what_fails_for_another_reason_is_a_failure(tmp_path, case):
    files, cause = BROKEN[case]
    with pytest.raises(BuildError, match=cause) as caught:
        asyncio.run(build(*make(tmp_path, files, (".",))))
    assert caught.value.log.exists()


def test_lines_that_uv_breaks_are_read():
    broken = (
        "  × Failed to build `x`\n  ╰─▶ `/repo` does not appear to be a Python\n"
        "      │   project, as neither `setup.py`"
    )
    assert is_undescribed(StepError("resolving", broken)) and not is_undescribed(
        StepError("resolving", "no such package: project")
    )


def test_requirements_without_the_project_are_none(tmp_path):
    assert requirements_of(("six", "-r requirements.txt", "../other"), tmp_path) is None


EXTRAS = (
    PROJECT.replace('"x"', '"My.X"')
    + 'all = ["my-x[more]", "my_x[dev-tools, all]; python_version > \'3\'", "c"]\ndev_tools = ["b"]\n'
)
CFG = (
    "[metadata]\nname = x\n[options]\ninstall_requires =\n    a\n    # c\n    b\n[options.extras_require]\n"
    "Dev_tools = c; python_version > '3'\nall = x[dev-tools]\n"
)
DECLARED = {  # (files, requirement) -> what takes its place; None: only building it would tell
    "extras that name extras of the project": (
        {"pyproject.toml": EXTRAS},
        ".[all]",
        ["six==1.16.0", "c", "toolz==1.0.0", "b"],
    ),
    "an extra in another spelling": ({"pyproject.toml": EXTRAS}, "-e .[Dev.Tools]", ["six==1.16.0", "b"]),
    "another word for editable": ({"pyproject.toml": EXTRAS}, "--editable ./", ["six==1.16.0"]),
    "an extra that is none": ({"pyproject.toml": EXTRAS}, ".[none]", ["six==1.16.0"]),
    "setup.cfg": ({"setup.cfg": CFG}, ".[all]", ["a", "b", "c; python_version > '3'"]),
    "setup.cfg of other tools": (
        {"setup.cfg": "[flake8]\nmax-line-length = 9\n", "requirements.txt": ""},
        ".",
        ["-r requirements.txt"],
    ),
    "pyproject.toml of other tools": (
        {"pyproject.toml": "[tool.black]\n", "requirements.txt": ""},
        ".",
        ["-r requirements.txt"],
    ),
    "setup.cfg that names a file": ({"setup.cfg": "[options]\ninstall_requires = file: r.txt\n"}, ".", None),
    "poetry's own words": ({"pyproject.toml": "[tool.poetry.dependencies]\nsix = '*'\n"}, ".", None),
    "flit's own words": ({"pyproject.toml": "[tool.flit.metadata]\nrequires = ['six']\n"}, ".", None),
}


@pytest.mark.parametrize("case", DECLARED)
def test_what_a_project_declares_takes_its_place(tmp_path, case):
    files, requirement, expected = DECLARED[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert requirements_of((requirement, "pytest"), tmp_path) == (None if expected is None else [*expected, "pytest"])
