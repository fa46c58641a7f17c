"""Whoever reads the agent's own environment finds no version of the project that the agent is to repair."""

import asyncio
import hashlib
import sys
import zipfile
from dataclasses import replace

import pytest
from judge_helpers import PYTEST_ENVIRONMENT, PYTEST_TASK

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import TaskError
from coderepairrl.rollout.fitting import fitting
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.scaffolds import make_scaffold, refusal
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.scaffolds.controls import EmptyConfig
from coderepairrl.scaffolds.retry import RetryConfig
from coderepairrl.tasks.building import build_all

CODE = "".join(f"def function_{n}(first, second):\n    return first * {n} + second\n\n\n" for n in range(12))
LATER = CODE.replace("* 3 +", "* 4 +")


@pytest.fixture
def environments(tmp_path):
    return EnvironmentsConfig(cache=str(tmp_path / "cache"), pythons=(sys.base_prefix,))


@pytest.fixture
def agent(tmp_path):
    """Its environment has the package `thing`."""
    wheel, about = tmp_path / "thing-2.0-py3-none-any.whl", "thing-2.0.dist-info"
    files = {
        "thing/__init__.py": LATER,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 2.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": "".join(f"{name},,\n" for name in files)}.items():
            archive.writestr(name, text)
    lock = tmp_path / "lock.txt"
    lock.write_text(f"thing @ file://{wheel} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return CommandConfig(argv=("true",), requirements=str(lock))


def of_project(tmp_path, name: str, text: str = CODE):
    base = tmp_path / name
    (base / name).mkdir(parents=True)
    (base / name / "__init__.py").write_text(text)
    environment = replace(PYTEST_ENVIRONMENT, name=name, base=str(base))
    return replace(PYTEST_TASK, task_id=name, environment=environment, files={})


def test_a_task_of_a_project_in_the_agents_environment_is_refused_with_a_remedy(agent, environments, tmp_path):
    thing, other = of_project(tmp_path, "thing"), of_project(tmp_path, "other", CODE.replace("function", "other"))

    async def said(config):
        refuses = await refusal(make_scaffold(config), environments)
        return [await refuses(task) for task in (thing, other, PYTEST_TASK)]

    for config in (agent, RetryConfig(agent=agent)):
        found, *rest = asyncio.run(said(config))
        assert found.startswith("thing: the environment of scaffold command holds ") and "use another scaffold" in found
        assert "/site-packages/thing/" in found and "\n" not in found and rest == ["", ""]
    assert asyncio.run(said(EmptyConfig())) == ["", "", ""]


def test_it_is_left_out_named_and_counted_wherever_tasks_are_built(agent, environments, tmp_path, capsys):
    thing, other = of_project(tmp_path, "thing"), of_project(tmp_path, "other", CODE.replace("function", "other"))
    scaffold = make_scaffold(agent)

    async def main():
        kept, refused = await fitting({"train": [thing, other], "heldout": [other]}, scaffold, environments)
        built = await build_all([thing, other], environments, refuses=await refusal(scaffold, environments))
        return kept, refused, built

    kept, refused, (built, failures) = asyncio.run(main())
    assert (
        kept == {"train": [other], "heldout": [other]} and [*refused] == ["thing"] == [*failures] and built == [other]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"left out: {refused['thing']}" and lines[1] == "1 of 2 tasks of split train are left out"
    with pytest.raises(TaskError, match="none of the 1 tasks of split heldout is left: thing: the environment of"):
        asyncio.run(fitting({"train": [other], "heldout": [thing]}, scaffold, environments))


def test_what_a_scaffold_shows_does_not_uncover_a_copy(tmp_path):
    """Such as the folder of a Python that the task's environment has, too, whose copies are covered there."""
    task = of_project(tmp_path, "thing")
    shown = tmp_path / "python"
    for name, text in {"pip/_vendor/thing": LATER, "site-packages/thing": LATER, "kept": "x = 1\n"}.items():
        (shown / name).mkdir(parents=True)
        (shown / name / "__init__.py").write_text(text)

    async def main():
        async with start_sandbox(SandboxConfig(scratch=str(tmp_path)), task) as sandbox:
            sandbox.show(str(shown))
            return await sandbox.run(f"cd {shown}; find . -name '*.py' -size +0; ls {sandbox.inside}/thing")

    assert asyncio.run(main()).output.split() == ["./kept/__init__.py", "__init__.py"]
