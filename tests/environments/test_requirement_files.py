"""Requirement files and conda environments of a checkout."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from coderepairrl.environments import EnvironmentsConfig, build, instead
from coderepairrl.environments.cache import StepError
from coderepairrl.environments.requirement_files import expand
from coderepairrl.tasks.build_rows import BUILD_TOOLS, INSTALL
from coderepairrl.types import Environment, Recipe

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

CONDA = """
name: tests
channels: [conda-forge]
dependencies:
  - python=3.10
  - numpy>=1.23  # why
  - conda-forge::matplotlib-base=3.5.*
  - dask-core = 2022.1
  - h5py=2.10.0=py39_0
  - typing_extensions
  - pip
  - pip:
    - numbagg
    - -e .
"""


def laid(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_other_lines_stay_as_they_are(tmp_path):
    assert expand([".[test]", "-r x.txt", "a<2"], tmp_path, ["a==1"]) == [".[test]", "-r x.txt", "a<2"]


def test_the_first_file_that_is_there_counts_with_the_files_that_it_names(tmp_path):
    laid(
        tmp_path,
        {"r/dev.txt": "-r test.txt  # first\nb==2\\\n --hash=sha256:00\n-e .\n.[x]\n-c c.txt\n", "r/test.txt": "\na\n"},
    )
    assert expand(["--first-of no.txt r/dev.txt r/test.txt"], tmp_path, []) == ["a", "b==2"]


def test_a_preferred_pin_takes_the_place_of_the_files(tmp_path):
    laid(tmp_path, {"dev.txt": "Jinja2==3.1\nclick>=8\n"})
    assert expand(["--first-of dev.txt"], tmp_path, ["jinja2==3.0.3"]) == ["jinja2", "click>=8"]


def test_a_conda_environment_is_read_as_pip_would_write_it(tmp_path):
    laid(tmp_path, {"environment.yml": CONDA})
    assert expand(["--conda ci/environment.yml environment.yml"], tmp_path, []) == [
        "numpy>=1.23",
        "matplotlib==3.5.*",
        "dask==2022.1.*",
        "h5py==2.10.0.*",
        "typing-extensions",
        "numbagg",
    ]


def test_what_conda_alone_has_is_refused_by_name_unless_it_is_left_out(tmp_path):
    laid(tmp_path, {"e.yml": "dependencies: [numpy, hdf5, cdms2]"})
    with pytest.raises(StepError, match="only conda has hdf5, cdms2 of e.yml: use `environments: images`"):
        expand(["--conda e.yml"], tmp_path, [])
    assert expand(["--conda e.yml --without CDMS2,hdf5"], tmp_path, []) == ["numpy"]


@pytest.mark.parametrize("line", ["--first-of a.txt b.txt", "--conda a.yml"])
def test_no_file_is_an_error_that_names_them(tmp_path, line):
    with pytest.raises(StepError, match="the checkout has no a"):
        expand([line], tmp_path, [])


@pytest.mark.parametrize("text", ["a: [", "- a", "name: x", "dependencies: 3"])
def test_a_file_that_is_no_environment_is_an_error(tmp_path, text):
    laid(tmp_path, {"e.yml": text})
    with pytest.raises(StepError, match=r"e\.yml is no conda environment"):
        expand(["--conda e.yml"], tmp_path, [])


# ---- a build with them


def test_what_is_prepared_is_read_and_a_preferred_pin_yields_to_what_the_project_requires(tmp_path):
    """The project asks for toolz<1 once its description is edited; of six it asks for any.
    A requirement file of the checkout doesn't outweigh the pin."""
    project = '[project]\nname = "x"\nversion = "1"\ndependencies = ["six", "toolz<2"]\n'
    folder = laid(tmp_path / "mirrors/me/x", {"pyproject.toml": project, "x.py": "", "dev.txt": "six>=1.16\n"})
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "base"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], cwd=folder, text=True).strip()
    recipe = Recipe(
        "git:me/x",
        commit,
        PYTHON,
        requirements=(".", "--first-of dev.txt", "six", "toolz", *BUILD_TOOLS),
        preferred=("six==1.15.0", "toolz==1.0.0"),
        prepare=("sed -i 's/toolz<2/toolz<1/' pyproject.toml", "[ -f no.cfg ] && sed -i 's/a/b/' no.cfg"),
        build=(INSTALL,),
        left_out=("apt-get install -y graphviz",),
    )
    config = EnvironmentsConfig(
        cache=str(tmp_path / "cache"), mirrors=(f"{tmp_path}/mirrors/{{owner}}/{{name}}",), pythons=(sys.base_prefix,)
    )
    made = asyncio.run(build(Environment("x", None, "", ("{python}",), recipe=recipe), config))
    pins = (Path(made.base).parent / "lock.txt").read_text().splitlines()
    assert "six==1.15.0" in pins and any(pin.startswith("toolz==0.") for pin in pins), pins
    assert "toolz<1" in Path(made.base, "pyproject.toml").read_text()
    assert instead(made) == "left out of its specification: apt-get install -y graphviz"
