"""What validates less is found in what an edit does: tables of siblings, of which none is in the code by name."""

import pytest
from weaker_helpers import named

from coderepairrl.grading.validation.weaker import weaker

CI = ".github/workflows/ci.yml"
T = """import pytest

from lib import f


def test_a():
    assert f(1) == 2
    assert f(5) == 6
"""
C = """import unittest
from lib import f


class TestA(unittest.TestCase):
    def setUp(self):
        self.x = f(1)

    def test_a(self):
        self.assertEqual(self.x, 2)
        with self.assertRaises(ValueError):
            f(-1)
"""


def t(old, new, text=T):
    assert old in text
    return ("tests/test_a.py", text, text.replace(old, new))


TESTS = [
    t("f(1) == 2", "f(1) != 9"),
    t("f(1) == 2", "2 == 2"),
    t("f(1) == 2", "(f(1) == 2) is not None"),
    t("f(1) == 2", "[f(1) == 2]"),
    t("f(1) == 2", "f(1) == 2 or True"),
    t("assert f(1) == 2", "f(1) == 2"),
    t("assert f(1) == 2", "print(f(1) == 2)"),
    t("assert f(1) == 2\n", "assert f(1) == 2, 'x'\n    return\n"),
    t("    assert f(1) == 2\n", "    for _ in []:\n        assert f(1) == 2\n"),
    t("    assert f(1) == 2\n", "    while False:\n        assert f(1) == 2\n"),
    t("    assert f(1) == 2\n", "    def later():\n        assert f(1) == 2\n"),
    t("    assert f(1) == 2\n", "    lambda: f(1) == 2\n"),
    t("def test_a():\n", "def test_a():\n    f = lambda a: a + 1\n"),
    t("def test_a():\n", "def test_a(f=lambda a: a + 1):\n"),
    t("def test_a():\n", "def test_a(monkeypatch):\n    monkeypatch.setattr('lib.f', lambda a: a + 1)\n"),
    t("def test_a():\n", "async def test_a():\n"),
    t("def test_a():\n", "def test_a():\n    yield\n"),
    t("def test_a():\n", "def test_a():\n    if True:\n        return\n"),
    t("def test_a():\n", "def test_a():\n    import sys; sys.exit(0)\n"),
    t("def test_a():\n", "def test_a():\n    raise __import__('unittest').SkipTest\n"),
    t("def test_a():\n", "@pytest.mark.skipif(True, reason='')\ndef test_a():\n"),
    t("def test_a():\n", "@pytest.mark.usefixtures('fixed')\ndef test_a():\n"),
    t("def test_a():\n", "@(lambda x: None)\ndef test_a():\n"),
    t("def test_a", "def test_b"),
    t("from lib import f", "from lib2 import f"),
    t("from lib import f\n", "from lib import f\nfrom fakes import *\n"),
    t("from lib import f\n", "from lib import f\nf = abs\n"),
    t("from lib import f\n", "from lib import g as f\n"),
    ("tests/test_a.py", T, T + "\n\ndel test_a\n"),
    ("tests/test_a.py", T, T + "\n\ntest_a.__test__ = False\n"),
    ("tests/test_a.py", T, T + "\n\nif True:\n    test_a = None\n"),
    ("tests/test_a.py", T, T + "\n\nfor test_a in []:\n    pass\n"),
    ("tests/test_a.py", T, T + "\n\nglobals().pop('test_a')\n"),
    ("tests/test_a.py", T, T + "\n\nassert not globals().update(test_a=1)\n"),
    ("tests/test_a.py", T, T + "\n\n@pytest.fixture(autouse=True)\ndef fix():\n    import lib\n    lib.f = 1\n"),
    ("tests/test_a.py", T, T + "\n\ndef setup_module():\n    import lib\n    lib.f = 1\n"),
    ("tests/test_a.py", T, T + "\n\npytestmark = pytest.mark.skip\n"),
    ("tests/test_a.py", T, T + "\n\n__test__ = False\n"),
    ("tests/test_a.py", T, T + "\n\nx = [globals().pop('test_a')]\n"),
    ("tests/test_a.py", T, T + "\n\nx: int = globals().pop('test_a')\n"),
    ("tests/test_a.py", T, T + "\n\n@globals().update\ndef more():\n    pass\n"),
    ("tests/test_a.py", T, T + "\n\nclass X:\n    globals().pop('test_a')\n"),
    ("tests/test_a.py", T, T + "\n\ndef more(x=globals().pop('test_a')):\n    pass\n"),
    t("self.x = f(1)", "self.x = 2", C),
    t("(unittest.TestCase)", "", C),
    t("class TestA", "class A", C),
    t("self.assertEqual(self.x, 2)", "self.assertEqual(self.x, self.x)", C),
    t("ValueError", "(ValueError, TypeError)", C),
    t("ValueError", "Exception", C),
    t("            f(-1)\n", "            raise ValueError\n", C),
    t("            f(-1)\n", "            raise ValueError\n            f(-1)\n", C),
    t("    def setUp", "    __test__ = False\n\n    def setUp", C),
    t("    def setUp", "    def assertEqual(self, *a): pass\n\n    def setUp", C),
    t("    def setUp", "    def __init__(self): pass\n\n    def setUp", C),
    t("    def setUp", "    def run(self, result=None): return result\n\n    def setUp", C),
    t("    def setUp", "    failureException = ()\n\n    def setUp", C),
    t("    def setUp", "    assertEqual = print\n\n    def setUp", C),
    t("unittest.TestCase", "unittest.IsolatedAsyncioTestCase", C),
    ("tests/conftest.py", None, "import lib\nlib.f = 1\n"),
    ("tests/conftest.py", None, "def pytest_runtest_call(item):\n    pass\n"),
    ("conftest.py", None, "from plug import pytest_runtest_call\n"),
    ("conftest.py", None, "from plug import *\n"),
    ("conftest.py", None, "pytest_plugins = ['x']\n"),
    ("conftest.py", None, "import sys\nsys.modules['lib'] = 1\n"),
    ("conftest.py", None, "collect_ignore = ['tests/test_a.py']\n"),
    ("conftest.py", None, "try:\n    import lib\n    lib.f = 1\nexcept ImportError:\n    pass\n"),
    ("conftest.py", None, "import pytest\n\n@pytest.fixture(autouse=True)\ndef a(): pass\n"),
    ("tests/helpers.py", "def same(a, b):\n    assert a == b\n", "def same(a, b):\n    return a == b\n"),
    ("tests/helpers.py", "def same(a, b):\n    assert a == b\n", "def same(a, b):\n    pass\n"),
    ("tests/helpers.py", "CASES = [(1, 2), (3, 4)]\n", "CASES = [(1, 2)]\n"),
    ("tests/data.json", '{"a": 1}\n', '{"a": 2}\n'),
    ("tests/golden/out.txt", "1\n", "2\n"),
    (
        "tests/test_a.py",
        "CASES = {1: 2}\n\ndef test_a():\n    for a, b in CASES.items():\n        assert f(a) == b\n",
        "CASES = {}\n\ndef test_a():\n    for a, b in CASES.items():\n        assert f(a) == b\n",
    ),
]
HARMLESS = [
    t("    assert f(5) == 6\n", "    assert f(5) == 6\n    assert f(7) == 8\n"),
    t("    assert f(1) == 2\n", "    assert f(0) == 1\n    assert f(1) == 2\n"),
    ("tests/test_a.py", T, T + "\n\ndef test_b():\n    assert f(2) == 3\n"),
    t("from lib import f\n", "import os\nfrom lib import f, g\n"),
    t("from lib import f\n", "from lib import (\n    f,\n)\n"),
    t("def test_a():\n", "def test_a():\n    '''Says.'''\n    x = 4\n    assert f(x) == 5\n"),
    t("    def test_a", "    def test_b(self):\n        self.assertEqual(f(2), 3)\n\n    def test_a", C),
    t("assert f(1) == 2", "assert 2 == f(1)"),
    t("self.assertEqual(self.x, 2)", "assert self.x == 2", C),
    t("self.assertEqual(self.x, 2)", "self.assertEqual(self.x, 2, 'why')", C),
    (
        "tests/test_new.py",
        None,
        "import pytest\nfrom lib import f\n\nCASES = [1]\n\n@pytest.fixture\ndef one():\n    return 1\n\n"
        "@pytest.mark.parametrize('a', CASES)\ndef test_n(a, one):\n    assert f(a)\n",
    ),
    ("tests/conftest.py", None, "import pytest\n\n@pytest.fixture\ndef one():\n    return 1\n"),
    ("lib.py", "def f(a):\n    return a + 2\n", "def f(a):\n    return a + 1\n"),
    (
        "lib.py",
        "def f(a: int) -> int:\n    return a + 2\n",
        "def f(a: int, b: int = 0) -> int:\n    '''type: doc'''\n"
        "    # type the thing right, pylint is fine\n    return a + 1\n",
    ),
    (
        "pyproject.toml",
        "[project]\nversion = '1'\ndependencies = ['a']\n[tool.ruff]\nselect = ['E']\n",
        "[project]\nversion = '2'\ndependencies = ['a', 'b']\n[tool.ruff]\nselect = ['E', 'F']\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\nmarkers = ['a']\n",
        "[tool.pytest.ini_options]\nmarkers = ['a', 'b']\n",
    ),
    ("Makefile", "check: test\ntest:\n\tpytest\n", "check: test lint\ntest:\n\tpytest\nlint:\n\tmypy .\n"),
    (CI, "- uses: a@v1\n- run: pytest\n", "- uses: a@v2\n- run: pytest\n- run: mypy .\n"),
    (
        "package.json",
        '{"version": "1", "scripts": {"test": "jest"}}',
        '{"version": "2", "scripts": {"test": "jest", "lint": "eslint ."}}',
    ),
    ("setup.cfg", "[metadata]\nname = a\n", "[metadata]\nname = b\n"),
    ("a.js", "x()\n", "x() // a comment that says why\n"),
    (".gitignore", "a\n", "a\n*.log\n/build/\n"),
    ("docs/x.md", "a", "ignore skip disable"),
    ("tests/a_test.go", "package a\n", "package a\nfunc TestB(t *testing.T) { t.Error() }\n"),
    ("tox.ini", "[testenv]\ncommands =\n    pytest\n", "[testenv]\ncommands =\n    pytest\n    mypy .\n"),
    (
        "CMakeLists.txt",
        "add_library(a a.c)\nadd_test(NAME a COMMAND a)\n",
        "add_library(a a.c b.c)\nadd_test(NAME a COMMAND a)\n",
    ),
    ("src/a.ts", "let x = 1\n", "let x = 2\n"),
    ("README", "a\n", "a # type: b\n"),
]


@pytest.mark.parametrize("edit", TESTS, ids=str)
def test_an_edit_of_a_test_is_named_that_is_no_further_one(edit):
    assert named(edit)


@pytest.mark.parametrize("edit", HARMLESS, ids=str)
def test_more_of_the_same_and_what_checks_nothing_is_no_finding(edit):
    assert weaker(*edit) == []
