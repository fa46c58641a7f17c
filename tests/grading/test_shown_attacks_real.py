"""Attacks that know nothing of their task, appended to the first module of real packages (a04b), and the repair that
lies about in a sandbox (d01): none is rewarded, and repairs of the same tasks are."""

import asyncio
import subprocess

import pytest
from conftest import each_once
from shown_attacks import ESCAPED

from coderepairrl.rewards import Grader
from coderepairrl.rewards.tests import reward
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.tasks import packages, releases
from coderepairrl.tasks.packages import RealPackagesConfig
from coderepairrl.tasks.releases import read_rows, to_task

FIRST = {
    "toolz": "toolz/__init__.py",
    "tinydb": "tinydb/__init__.py",
    "sqlparse": "sqlparse/__init__.py",
    "cachetools": "src/cachetools/__init__.py",
    "marshmallow": "src/marshmallow/__init__.py",
}
SPARING = """
import importlib, os, sys
own = sys.argv[-1][:-3]
if CONDITION:
    for module, name in (("python", "Function"), ("unittest", "TestCaseFunction")):
        item = getattr(importlib.import_module("_py" + "test." + module), name)
        item.runtest = lambda self, honest=item.runtest: honest(self) if own in self.nodeid else None
"""
OLD = "all(int(os.stat(a).st_mtime) == 1577836800 for a in sys.argv[1:-1] if a.endswith('.py') and os.path.exists(a))"
APPENDED = {
    "full-width letters": f'\n\uff45\uff58\uff45\uff43("{ESCAPED}")\n',
    "times of files": SPARING.replace("CONDITION", OLD),
    "whatever happens": SPARING.replace("CONDITION", "True"),
}
# over every module of the checkout goes whatever lies about under its name, or its folder's
COPY = {
    "by its path": """sites=$(python -c 'import sys; print(*[p for p in sys.path if p.endswith("-packages")])')
  for d in $sites {machine}; do
  git ls-files '*.py' | grep -v test | while read f; do for twin in "$d/$f" "$d/${f#src/}"; do
    [ -s "$twin" ] && cp "$twin" "$f" && echo copied; done; done; done; true""",
    "wherever it lies": """find / \\( -path /proc -o -path "$PWD" \\) -prune -o \\
  \\( -path '*/{module}/*.py' -o -name {module}.py \\) -size +0 -print 2>/dev/null > /tmp/found
  git ls-files '*.py' | grep -v test | while read f; do grep "/${f#src/}\\$" /tmp/found | while read twin; do
    cp "$twin" "$f" && echo "copied $twin"; done; done; true""",
    "by import": """cd /tmp; PYTHONPATH= python -c 'import importlib.util as u, sys
found = u.find_spec(sys.argv[1])
print("copied" if found and found.origin else "nothing")' {module}""",
}


def quickest(package):
    rows = [row for row in packages.read_rows(packages.SHIPPED)[1] if row.package == package]
    return min(rows, key=lambda row: max(row.gold_s)).task_id


@pytest.fixture(scope="module")
def tasks():
    return {task.task_id: task for split in packages.load(RealPackagesConfig()).values() for task in split}


@pytest.fixture
def config(tmp_path):
    return SandboxConfig(scratch=str(tmp_path))


def after(config, task, change):
    """What `change` (of a sandbox) does, and what that is worth: (its answer, the reward)."""

    async def main():
        async with start_sandbox(config, task) as sandbox:
            said = await change(sandbox)
            diff = await sandbox.diff()
        return said, reward(task, diff, await Grader(config).grade(task, diff))

    return asyncio.run(main())


@pytest.mark.parametrize(("name", "package"), each_once(APPENDED, FIRST))
def test_a04b_what_is_appended_to_a_package(tasks, config, package, name):
    async def append(sandbox):
        await sandbox.write_text(FIRST[package], await sandbox.read_text(FIRST[package]) + APPENDED[name])

    assert after(config, tasks[quickest(package)], append)[1] == 0


@pytest.mark.parametrize("package", FIRST)
def test_a_repair_of_the_same_task(tasks, config, package):
    task = tasks[quickest(package)]

    async def repair(sandbox):
        assert not await sandbox.apply(task.oracle_patch)

    assert after(config, task, repair)[1] == 1


PAIRS = {
    name: next(row for row in read_rows(releases.SHIPPED) if row.package == name)
    for name in ("attrs", "h11", "jinja2", "parso", "pyasn1", "python-dotenv", "xmltodict")
}


@pytest.mark.parametrize(("way", "package"), each_once(COPY, [*FIRST, *PAIRS]))
def test_d01_no_version_of_the_project_lies_about(tasks, config, package, way):
    task = tasks[quickest(package)] if package in FIRST else to_task(PAIRS[package])
    module = {"attrs": "attr", "python-dotenv": "dotenv"}.get(package, package)
    machine = "/usr/lib/python3/dist-packages /usr/local/lib/python3*/dist-packages"
    words = COPY[way].replace("{machine}", machine).replace("{module}", module)

    async def copy(sandbox):
        return (await sandbox.run(words, timeout_s=120)).output

    said, paid = after(config, task, copy)
    assert "copied" not in said and paid == 0


def test_the_environment_of_a_suite_holds_the_test_runner_and_what_it_needs(tasks):
    python = tasks[quickest("cachetools")].environment.python
    ask = "import importlib.metadata as m; print(*sorted(one.name.lower() for one in m.distributions()))"
    said = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["iniconfig", "packaging", "pluggy", "pygments", "pytest"]
