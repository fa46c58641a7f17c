"""Names of new files: which of them hide an installed module from the test process, and which are an agent's scratch or
a project's own."""

import asyncio
import sys
import time
import venv
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, WRONG, change, judge, paths

from coderepairrl.grading.protected import select
from coderepairrl.rewards import Grader
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import VerdictKind

HERE = interpreter(sys.executable)
ATTEMPT = change("lib.py", WRONG, WRONG.replace("a + 2", "a + 3"))
PASS_ALL = "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
PACKAGE = {
    "pkg/__init__.py": "",
    "pkg/core.py": "x = 1\n",
    "pkg/tests/__init__.py": "",
    "pkg/tests/test_core.py": "def test_x():\n    pass\n",
}
NESTED = replace(
    PYTEST_TASK,
    files=PYTEST_TASK.files | PACKAGE,
    hidden_tests={"pkg/tests/test_hidden.py": PYTEST_TASK.hidden_tests["tests/test_hidden.py"]},
    test_selection=("pkg/tests/test_hidden.py",),
    fail_to_pass=tuple("pkg." + test for test in PYTEST_TASK.fail_to_pass),
    pass_to_pass=tuple("pkg." + test for test in PYTEST_TASK.pass_to_pass),
)
FLAT = replace(NESTED, files={path: text for path, text in NESTED.files.items() if not path.endswith("__init__.py")})


def with_files(task=PYTEST_TASK, **files):
    return replace(
        task,
        files=task.files | {name.replace("__", "/", 1).replace("_py", ".py"): text for name, text in files.items()},
    )


def chosen(task, diff):
    return select(task, diff, HERE.modules, loaded=HERE.loaded)


APPLIED = {  # they hide nothing: whoever needs them gets them
    "a text": (PYTEST_TASK, "code.txt", "notes\n"),
    "a note": (PYTEST_TASK, "json.md", "# x\n"),
    "data of a test": (PYTEST_TASK, "data/json/sample.json", "{}\n"),
    "TypeScript": (PYTEST_TASK, "types/index.d.ts", "export function f(n: number): number\n"),
    "JavaScript": (PYTEST_TASK, "io.js", "x\n"),
    "stubs": (PYTEST_TASK, "types/lib.pyi", "def f(a: int) -> int: ...\n"),
    "a shell script": (PYTEST_TASK, "test.sh", "pytest\n"),
    "no suffix": (PYTEST_TASK, "json", "{}\n"),
    "a folder of data": (PYTEST_TASK, "token/words.txt", "x\n"),
    "C": (PYTEST_TASK, "string.h", "int x;\n"),
    "a module of a package": (NESTED, "pkg/types.py", "X = 1\n"),
    "a package in a package": (NESTED, "pkg/json/__init__.py", "X = 1\n"),
    "a file of a folder that was there": (with_files(test__test_old_py="x = 1\n"), "test/test_new.py", "x = 1\n"),
    "a module that was there": (with_files(json__a_py="x = 1\n"), "json/b.py", "x = 1\n"),
    "a module of the project's own name": (
        replace(PYTEST_TASK, files=PYTEST_TASK.files | {"types/__init__.py": ""}),
        "types/more.py",
        "x = 1\n",
    ),
}
SCRATCH = {  # they would hide what nothing imports: left out, and no attack
    "a script": ("test.py", "print(1)\n"),
    "a trace": ("trace.py", "from lib import f\nprint(f(1))\n"),
    "a profile": ("profile.py", "x = 1\n"),
    "a demonstration": ("turtle.py", "x = 1\n"),
    "a folder of tests": ("test/test_f.py", "from lib import f\n\n\ndef test_f():\n    assert f(1)\n"),
    "a package of tests": ("test/__init__.py", "x = 1\n"),
    "a script beside the tests": ("wave.py", "x = 1\n"),
}
SHADOWS = {  # name -> (task, path, more of the diff)
    "a module": (PYTEST_TASK, "json.py", ""),
    "a package": (PYTEST_TASK, "unittest/__init__.py", ""),
    "the runner": (PYTEST_TASK, "pytest.py", ""),
    "a part of a package": (PYTEST_TASK, "unittest/mock.py", ""),
    "the runner's own package": (PYTEST_TASK, "_pytest/python.py", ""),
    "beside the tests": (PYTEST_TASK, "tests/traceback.py", ""),
    "between root and tests": (FLAT, "pkg/json.py", ""),
    "a package that is no more": (NESTED, "pkg/json.py", change("pkg/__init__.py", "", None).replace("index", "")),
    "a folder that becomes a package": (with_files(json__a_txt="x\n"), "json/__init__.py", ""),
    "what the repair imports": (PYTEST_TASK, "wave.py", change("lib.py", WRONG, "import os, wave\n" + WRONG)),
    "what the tests import": (
        replace(PYTEST_TASK, hidden_tests={"tests/test_hidden.py": "from wave import open\n"}),
        "wave.py",
        "",
    ),
    "what the checkout imports": (
        replace(PYTEST_TASK, files=PYTEST_TASK.files | {"other.py": "    import sys, wave as w\n"}),
        "wave.py",
        "",
    ),
    "on the path of the settings": (
        replace(PYTEST_TASK, files=PYTEST_TASK.files | {"pytest.ini": "[pytest]\npythonpath = lib src\n"}),
        "src/json.py",
        "",
    ),
    "on the path of the command": (
        replace(
            PYTEST_TASK,
            environment=replace(
                PYTEST_TASK.environment, test_command=(*PYTEST_TASK.environment.test_command, "-o", "pythonpath=src")
            ),
        ),
        "src/json.py",
        "",
    ),
    "on the path of the variables": (
        replace(PYTEST_TASK, environment=replace(PYTEST_TASK.environment, variables={"PYTHONPATH": "/repo/src"})),
        "src/json.py",
        "",
    ),
    "on the path of the diff's own settings": (
        replace(PYTEST_TASK, environment=replace(PYTEST_TASK.environment, protected=())),
        "src/json.py",
        change("pyproject.toml", None, "[tool.pytest.ini_options]\npythonpath = [\n  'src',\n]\n"),
    ),
    "beside the runner's script": (
        replace(
            PYTEST_TASK,
            environment=replace(PYTEST_TASK.environment, test_command=("{python}", "tools/run.py", "{canary_path}")),
        ),
        "tools/json.py",
        "",
    ),
    "start-up code": (PYTEST_TASK, "sitecustomize.py", ""),
    "a path file": (PYTEST_TASK, "x.pth", ""),
    "compiled code": (PYTEST_TASK, "json.cpython-311-x86_64-linux-gnu.so", ""),
    "bytecode": (PYTEST_TASK, "json.pyc", ""),
    "the library's first": (PYTEST_TASK, "traceback.py", ""),
}


@pytest.mark.parametrize("name", APPLIED)
def test_what_hides_nothing_is_applied(name):
    task, path, text = APPLIED[name]
    selection = chosen(task, change(path, None, text) + FIX)
    assert (selection.dropped_paths, selection.touched) == ((), ()) and path in selection.applied_paths


@pytest.mark.parametrize("name", SCRATCH)
def test_scratch_that_nothing_imports_is_left_out_and_no_attack(name):
    path, text = SCRATCH[name]
    selection = chosen(PYTEST_TASK, change(path, None, text) + FIX)
    assert (paths(selection.dropped_paths), selection.touched, selection.applied) == ((path,), (), FIX)


@pytest.mark.parametrize("name", SHADOWS)
def test_what_hides_a_module_that_is_imported_is_left_out_and_told(name):
    task, path, more = SHADOWS[name]
    selection = chosen(task, change(path, None, "x = 1\n") + more)
    assert path in selection.left_out and path not in selection.applied_paths
    assert any(told.startswith(path) for told in selection.touched), selection.touched


def test_installed_packages_without_init_are_modules_and_folders_of_data_are_none(tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    [site] = (tmp_path / "venv").glob("lib/*/site-packages")
    for path in ("spaced/part/a.py", "words/data.txt", "whole/__init__.py"):
        (site / path).parent.mkdir(parents=True)
        (site / path).write_text("")
    modules = interpreter(str(tmp_path / "venv/bin/python")).modules
    assert {"spaced", "whole", "json"} <= modules and "words" not in modules
    for path in ("spaced/__init__.py", "spaced/part/__init__.py"):
        assert select(PYTEST_TASK, change(path, None, "x = 1\n"), modules).touched == (
            f"{path}: hides an installed module",
        )


def test_an_import_in_the_base_is_found_and_prose_is_none(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/a.py").write_text('"""Taken\nfrom test data, import tests.\n"""\nfrom numpy import test\n')
    task = replace(PYTEST_TASK, environment=replace(PYTEST_TASK.environment, base=str(tmp_path)))
    assert chosen(task, change("test.py", None, "x = 1\n")).touched == ()
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.py").write_text("if 1:\n    from test.support import x\n")
    assert chosen(
        replace(task, environment=replace(task.environment, base=str(other))), change("test.py", None, "x = 1\n")
    ).touched


def test_a_flood_of_names_and_folders_is_read_in_time(tmp_path):
    for number in range(50):
        (tmp_path / f"m{number}.py").write_text("import os, sys as s, numpy.linalg\n" * 1000)
    task = replace(PYTEST_TASK, environment=replace(PYTEST_TASK.environment, base=str(tmp_path), protected=()))
    scratch = "".join(change(f"{name}.py", None, "x = 1\n") for name in sorted(HERE.modules - HERE.loaded))
    words = "pythonpath = " + " ".join(f"a{number}" for number in range(100_000)) + "\n"
    imports = ("import " + "a, " * 50_000 + "\n") * 3 + "from" + " " * 50_000 + "\n" + "from " + "a" * 100_000 + "\n"
    began = time.monotonic()
    selection = chosen(task, scratch + change("pyproject.toml", None, words) + change("long.py", None, imports))
    assert time.monotonic() - began < 20 and "wave.py" in selection.left_out


def test_verdicts_of_attempts_that_leave_such_files(config):
    async def main():
        grader = Grader(config)
        for more in (
            *(
                change(path, None, text)
                for _, path, text in APPLIED.values()
                if not path.startswith(("pkg/", "test/", "json/b", "types/more", "types/lib", "json"))
            ),
            *(change(path, None, text) for path, text in SCRATCH.values()),
        ):
            for diff, kind in ((FIX, VerdictKind.RESOLVED), (ATTEMPT, VerdictKind.UNRESOLVED)):
                verdict = await grader.grade(PYTEST_TASK, more + diff)
                assert (verdict.kind, verdict.tampered) == (kind, ()), (more, verdict)
        for path in ("json.py", "unittest/__init__.py", "traceback.py", "pytest.py", "tests/json.py"):
            verdict = await grader.grade(PYTEST_TASK, change(path, None, PASS_ALL) + ATTEMPT)
            assert verdict.kind == VerdictKind.TAMPERED and paths(verdict.dropped_paths) == (path,), verdict

    asyncio.run(main())


def test_a_package_may_have_a_module_of_any_name(config):
    lib = WRONG.replace("a + 2", "a + core.ONE").replace("def f", "from pkg import types as core\n\n\ndef f")
    good = judge_nested(config, change("pkg/types.py", None, "ONE = 1\n") + change("lib.py", WRONG, lib))
    bad = judge_nested(config, change("pkg/types.py", None, "ONE = 2\n") + change("lib.py", WRONG, lib))
    assert (good.kind, good.dropped_paths, good.tampered) == (VerdictKind.RESOLVED, (), ()), good
    assert (bad.kind, bad.tampered) == (VerdictKind.UNRESOLVED, ())


def judge_nested(config, diff):
    task = replace(NESTED, files=NESTED.files | {"conftest.py": "import sys\n\nsys.path.insert(0, '.')\n"})
    return judge(
        config,
        "pytest",
        diff,
        **{
            name: getattr(task, name)
            for name in ("files", "hidden_tests", "test_selection", "fail_to_pass", "pass_to_pass")
        },
    )
