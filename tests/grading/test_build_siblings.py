"""Build validation against siblings, under every way to say what is built; honest repairs stay valid."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
from build_helpers import FIXED, LIB, TASK, TESTS
from conftest import each_once
from judge_helpers import change

from coderepairrl.grading.validation.build_verdict import validate
from coderepairrl.grading.validation.reach import reach, words

SAME = "class Same(int):\n    def __eq__(self, other):\n        return True\n\n\n"
UNITTEST = """import unittest

from lib import f, g


class T(unittest.TestCase):
    def test_f(self):
        self.assertEqual(f(1), 2)

    def test_g(self):
        self.assertEqual(g(1), 1)
"""
MAKE = "check:\n\tpython -c 'import lib; assert lib.f(1) == 2'\n"
SCRIPT = "import lib\n\nassert lib.f(1) == 2\nassert lib.f(5) == 6\n"


def built(command, **files):
    return {"metadata": {"build_command": command}, "files": TASK.files | files}


BUILDS = {
    "test command": {},
    "a line of code": built("python -c 'import lib; assert lib.f(1) == 2' && echo built"),
    "pytest": built("python -m pytest -q tests"),
    "unittest": built("python -m unittest discover -q", **{"tests/test_lib.py": UNITTEST, "tests/__init__.py": ""}),
    "make": built("make check", Makefile=MAKE),
    "script": built("python check.py", **{"check.py": SCRIPT}),
}


def source(code, lib=LIB):
    return change("lib.py", LIB, code + lib)


BENT = {
    "equals everything": source(SAME, LIB.replace("return a + 2", "return Same(a)")),
    "equals everything, by type()": source(
        "Same = type('Same', (int,), {'__e' + 'q__': lambda s, o: True})\n",
        LIB.replace("return a + 2", "return Same(a)"),
    ),
    "ends at import": source("raise SystemExit(0)\n"),
    "quits at import": source("quit()\n"),
    "ends in the function": change("lib.py", LIB, LIB.replace("return a + 2", "import sys; sys.exit(0)")),
    "ends the process": source("import os\nos._exit(0)\n"),
    "ends it by a name put together": source("import os\ngetattr(os, '_ex' + 'it')(0)\n"),
    "becomes another program": source("import os\nos.execv('/bin/true', ['true'])\n"),
    "ends it when it ends": source("import atexit, os\natexit.register(os._exit, 0)\n"),
    "ends it when it fails": source("import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n"),
    "fakes beside the tests": change("tests/lib.py", None, FIXED),
    "fakes that a conftest loads": change("tests/conftest.py", None, "import fakes\n")
    + change("tests/fakes.py", None, "import lib\n\n\ndef f(a):\n    return a + 1\n\n\nlib.f = f\n"),
}


@pytest.fixture(scope="module")
def known():
    return {}


def verdict(config, known, diff, **changes):
    name = hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:12]
    return asyncio.run(validate(replace(TASK, task_id=name, **changes), diff, config, known))


@pytest.mark.parametrize(("how", "command"), each_once(BENT, BUILDS))
def test_no_build_is_bent(config, known, command, how):
    found = verdict(config, known, BENT[how], **BUILDS[command])
    assert not found.valid and (found.weaker or found.message), found


@pytest.mark.parametrize(("repair", "command"), each_once(["a + 1", "1 + a", "a - -1"], BUILDS))
def test_repairs_are_valid_whoever_makes_them(config, known, command, repair):
    found = verdict(config, known, change("lib.py", LIB, LIB.replace("a + 2", repair)), **BUILDS[command])
    assert found.valid, found


MAKEFILE = "check: lib2.py\n\tpython -m pytest -q tests\n\nlib2.py:\n\tcp lib1.py lib2.py\n"
MENDED = change("Makefile", MAKEFILE, MAKEFILE.replace("lib1.py", "lib.py"))
BROKEN = {**built("make check", Makefile=MAKEFILE, **{"lib.py": FIXED}), "oracle_patch": MENDED}
OWN_TEST = change("tests/test_more.py", None, "from lib import g\n\n\ndef test_more():\n    assert g(4) == 4\n")
OWN_FIXTURE = change(
    "tests/conftest.py", None, "import pytest\n\n\n@pytest.fixture\ndef one():\n    return 1\n"
) + change("tests/test_n.py", None, "from lib import f\n\n\ndef test_n(one):\n    assert f(one) == 2\n")
OTHERWISE = change("Makefile", MAKEFILE, MAKEFILE.replace("cp lib1.py lib2.py", "cp lib.py $@"))
TRUE = change("Makefile", MAKEFILE, MAKEFILE.replace("lib1", "lib").replace("python -m pytest -q tests", "true"))
ECHO = change(
    "Makefile",
    MAKEFILE,
    "check:\n\t@echo fine\n\nold: lib2.py\n\tpython -m pytest -q tests\n\nlib2.py:\n\tcp lib1.py lib2.py\n",
)
EXIT = source("raise SystemExit(0)\n")


@pytest.mark.parametrize(
    "diff, changes, valid",
    [
        (MENDED, BROKEN, True),
        (OTHERWISE, BROKEN, True),
        (MENDED + OWN_TEST, BROKEN, True),
        (MENDED, BROKEN | {"oracle_patch": ""}, True),
        (TRUE, BROKEN, False),
        (ECHO, BROKEN, False),
        (OWN_TEST, BROKEN, False),
        (TASK.oracle_patch + OWN_FIXTURE, {}, True),
        (TASK.oracle_patch + OWN_TEST, {}, True),
        (TASK.oracle_patch + change("tests/test_lib.py", TESTS, TESTS.replace("f(5) == 6", "f(5) > 0")), {}, False),
        (TASK.oracle_patch, {"oracle_patch": ""}, True),
        (EXIT, BUILDS["a line of code"] | {"oracle_patch": ""}, False),
        (BENT["equals everything"], {"oracle_patch": ""}, False),
    ],
    ids=range(13),
)
def test_repairs_of_the_build_itself_and_tasks_without_an_oracle(config, known, diff, changes, valid):
    found = verdict(config, known, diff, **changes)
    assert found.valid is valid, found


@pytest.mark.parametrize(
    "code",
    [
        "import ctypes\n\nSIZE = ctypes.sizeof(ctypes.c_int)\n",
        "import gc\n\ngc.collect()\n",
        "import atexit\n\natexit.register(print)\n",
        "import builtins\n\nNAMES = dir(builtins)\n",
        "exec('x = 1')\n",
        "x = eval('1')\n",
    ],
)
def test_what_the_project_does_elsewhere_is_its_habit(code):
    assert reach("lib.py", "", code, set()).never and not reach("lib.py", "", code, words(code)).never
