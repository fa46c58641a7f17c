"""Tools of other languages: found where they are said to be, refused by name, the same in every sandbox."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
from environments_helpers import built, in_sandbox

from coderepairrl.config import contents
from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.environments.cache import StepError
from coderepairrl.environments.tools import JUNIT, Jar, find_jar, find_tool
from coderepairrl.tasks import jsonl
from coderepairrl.tasks.building import build_task, is_built
from coderepairrl.types import Environment, Task

PLACE = Environment("tooled", None, "", ("true",), tools=("node:20",), language="java")
TASK = Task("t", "", PLACE, {"a.txt": "a\n"}, {}, (), ("x::y",), (), "")


def installation(folder, program, says):
    """A folder like that of a toolchain, whose program says a version."""
    path = folder / "bin" / program
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(folder)


def config(tmp_path, *tools, jars=()):
    return EnvironmentsConfig(cache=str(tmp_path / "cache"), tools=tools, jars=jars)


@pytest.mark.parametrize(
    "tool, program, says, asked, version",
    [
        ("jdk", "javac", "javac 17.0.9", "17", "17.0.9"),
        ("jdk", "javac", "javac 1.8.0_292", "8", "8.0"),
        ("go", "go", "go version go1.21.3 linux/amd64", "1.21", "1.21.3"),
        ("node", "node", "v20.1.0", "20", "20.1.0"),
        ("rust", "rustc", "rustc 1.95.0 (abc 2026-01-01)", "1.95", "1.95.0"),
    ],
)
def test_a_tool_is_found_by_what_it_says(tmp_path, tool, program, says, asked, version):
    folder = installation(tmp_path / "tools/one", program, says)
    installation(tmp_path / "tools/other", program, says.replace(asked, "3"))
    assert find_tool(tool, asked, config(tmp_path, f"{tmp_path}/tools/*")) == (folder, version)


def test_what_is_missing_is_refused_by_name_with_the_remedy(tmp_path):
    installation(tmp_path / "node", "node", "v20.1.0")
    here = config(tmp_path, f"{tmp_path}/node")
    with pytest.raises(BuildError, match=r"node 99 is not installed .*environments\.tools"):
        built(replace(PLACE, tools=("node:99",)), here)
    with pytest.raises(BuildError, match="no tool 'cobol': those there are: junit, jdk, go, node, rust"):
        built(replace(PLACE, tools=("cobol:1",)), here)
    with pytest.raises(BuildError, match="junit:4.13.2 needs a jdk, named before it"):
        built(replace(PLACE, tools=("junit:4.13.2",)), here)


def test_a_sandbox_shows_it_read_only_and_first_on_its_path(tmp_path):
    folder = installation(tmp_path / "node", "node", "v20.1.0")
    place = built(PLACE, config(tmp_path, folder))
    assert place.tool_folders == (folder,) and is_built(place) and not is_built(PLACE)
    said = in_sandbox(place, f"which node; node; touch {folder}/bin/new 2>&1", tmp_path).splitlines()
    assert said[:2] == [f"{folder}/bin/node", "v20.1.0"] and "Read-only" in said[2]


def test_the_lock_is_of_the_version_and_another_one_is_refused(tmp_path):
    one = config(tmp_path, installation(tmp_path / "a", "node", "v20.1.0"))
    same = config(tmp_path, installation(tmp_path / "b", "node", "v20.1.0"))
    other = config(tmp_path, installation(tmp_path / "c", "node", "v20.2.0"))
    lock = built(PLACE, one).lock
    admitted = replace(TASK, environment=replace(PLACE, lock=lock))
    assert asyncio.run(build_task(admitted, same)).environment.lock == lock
    with pytest.raises(Exception, match="prepare the tasks again"):
        asyncio.run(build_task(admitted, other))
    built_task = asyncio.run(build_task(admitted, one))
    assert contents.task(built_task) == contents.task(asyncio.run(build_task(admitted, same)))


def test_a_row_of_it_is_read_as_it_was_written(tmp_path):
    assert jsonl.from_row(jsonl.to_row(TASK), "row", tmp_path) == TASK


def test_a_jar_is_taken_by_its_content(tmp_path):
    jar = Jar("one-1.0.jar", hashlib.sha256(b"one").hexdigest(), "no-such.jar")
    for folder, data in (("a/b", b"other"), ("c", b"one")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / jar.file).write_bytes(data)
    assert find_jar(jar, config(tmp_path, jars=(str(tmp_path),))) == tmp_path / "c" / jar.file
    with pytest.raises(StepError, match="one-1.0.jar is in no folder of environments.jars .*a/b.*other content"):
        find_jar(jar, config(tmp_path, jars=(str(tmp_path / "a"),)))
    assert all(len(jar.sha256) == 64 for jars in JUNIT.values() for jar in jars)
