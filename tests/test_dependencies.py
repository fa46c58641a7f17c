"""What is locked fits what is asked for (pyproject.toml, requirements/*.in), and what is imported is asked for."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# of scaffolds' own environments (coderepairrl/scaffolds/locks), of PyTorch and pydantic, or optional on a GPU
OTHERS = {"aider", "diskcache", "flash_attn", "grep_ast", "litellm", "minisweagent", "networkx", "pygments"}
OTHERS |= {"annotated_types", "pydantic_core"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(kind: str) -> list[Requirement]:
    """By requirements/KIND.in, where `.[KIND]` stands for the project's own."""
    found = []
    for line in (ROOT / "requirements" / f"{kind}.in").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line == f".[{kind}]":
            found += PROJECT["dependencies"] + PROJECT["optional-dependencies"][kind]
        elif line:
            found.append(line)
    return [Requirement(text) for text in found]


def locked(kind: str) -> dict[str, Version]:
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements" / f"{kind}.lock").read_text(), re.M)
    return {normal(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_lock_fits_what_is_asked_for(kind):
    """If not: bash scripts/lock.sh"""
    pins = locked(kind)
    assert not [
        str(requirement)
        for requirement in asked_for(kind)
        if normal(requirement.name) not in pins or pins[normal(requirement.name)] not in requirement.specifier
    ]


def test_what_the_project_imports_is_asked_for():
    folders = [ROOT / name for name in ("coderepairrl", "scripts", "slurm", "analysis")]
    own = {path.stem for folder in folders for path in folder.glob("*.py")} | {"coderepairrl"}
    asked = {normal(requirement.name) for requirement in asked_for("cpu")}
    distributions = packages_distributions()
    unknown = {}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for name in imported(path) - own - OTHERS - {"vllm"} - set(sys.stdlib_module_names):
            if not {normal(each) for each in distributions.get(name, [name])} & asked:
                unknown.setdefault(name, path.name)
    assert not unknown, "name it in pyproject.toml, with why; then bash scripts/lock.sh"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
