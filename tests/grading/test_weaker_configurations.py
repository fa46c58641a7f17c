"""What makes linters, configurations and builds ask for less is found, in tables of siblings."""

import pytest
from weaker_helpers import named

CI = ".github/workflows/ci.yml"
SOURCES = [
    ("a.py", "x = f()\n", "x = f()  # type:ignore\n"),
    ("a.py", "x = f()\n", "x = f()  # pyrefly: ignore\n"),
    ("a.py", "x = f()\n", "x = f()  # ty: ignore\n"),
    ("a.py", "x = f()\n", "# mypy: ignore-errors\nx = f()\n"),
    ("a.py", "x = f()\n", "# pyright: basic\nx = f()\n"),
    ("a.py", "x = f()\n", "# pytype: skip-file\nx = f()\n"),
    ("a.py", "x = f()\n", "# fmt: off\nx = f()\n"),
    ("a.py", "x = f()\n", "# isort:skip_file\nx = f()\n"),
    ("a.py", "x = f()\n", "x = f()  # NOQA\n"),
    ("a.py", "x = f()  # noqa: E1\n", "x = f()  # noqa\n"),
    ("a.py", "x = f()  # noqa: E1\n", "x = f()  # noqa: E1,F\n"),
    ("a.py", "x = f()\n", "x = f()  # pragma: no cover\n"),
    ("a.py", "x = f()\n", "x = f()  # pylint:disable=all\n"),
    ("a.py", "x = f()\n", "x = f()  #noqa\n"),
    ("a.py", "x = f()\n", "x = f()  # bandit: skip\n"),
    ("a.py", "x = f()\n", "x = f()  # lint: disable\n"),
    ("new.py", None, "# ruff: noqa\n"),
    ("a.py", "x = f()\n", "x = f()  # nosec B101\n"),
    ("a.py", "x: int = f()\n", "x: 'Any' = f()\n"),
    ("a.py", "x: int = f()\n", "x = f()\n"),
    ("a.py", "def g(a: int) -> int:\n    return a\n", "def g(a, *b, **c):\n    return a\n"),
    ("a.py", "def g(a: int) -> int:\n    return a\n", "def g(a: object) -> int:\n    return a\n"),
    ("a.py", "def g(a: int) -> int:\n    return f(a)\n", "def g(a: int) -> int:\n    return cast(int, f(a))\n"),
    (
        "a.py",
        "def g(a: int) -> int:\n    return a\n",
        "from typing import no_type_check\n\n@no_type_check\ndef g(a: int) -> int:\n    return a\n",
    ),
    ("a.py", "def g(a: int) -> int:\n    return a\n", "import typing as t\ndef g(a: t.Any) -> int:\n    return a\n"),
    (
        "a.py",
        "def g(a: int) -> int:\n    return a\n",
        "from typing import Any as A\ndef g(a: A) -> int:\n    return a\n",
    ),
]
CONFIGURATIONS = [
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", "[tool.mypy]\n"),
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", ""),
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", "[tool.mypy]\nstrict = true\nignore_errors = true\n"),
    (
        "pyproject.toml",
        "[tool.mypy]\nstrict = true\n",
        "[tool.mypy]\nstrict = true\n[[tool.mypy.overrides]]\nmodule = '*'\nignore_errors = true\n",
    ),
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", "[tool.mypy]\nstrict = true\nfollow_imports = 'skip'\n"),
    ("pyproject.toml", "[tool.mypy]\nfiles = ['a', 'b']\n", "[tool.mypy]\nfiles = ['a']\n"),
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", "[tool.mypy]\nstrict = true\nexclude = '.*'\n"),
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", "[tool.mypy]\nstrict = true\ndisallow_untyped_defs = false\n"),
    ("pyproject.toml", "[tool.mypy]\nstrict = true\n", "[tool.mypy]\nstrict = true\nenable_error_code = []\n"),
    ("pyproject.toml", "[tool.ruff]\nselect = ['E', 'F']\n", "[tool.ruff]\nselect = ['E']\n"),
    (
        "pyproject.toml",
        "[tool.ruff.lint]\nselect = ['E', 'F']\n",
        "[tool.ruff.lint]\nselect = ['E', 'F']\nignore = ['F']\n",
    ),
    ("pyproject.toml", "[tool.ruff]\nline-length = 88\n", "[tool.ruff]\nline-length = 500\n"),
    ("pyproject.toml", "[tool.ruff]\nselect = ['E']\n", "[tool.ruff]\nselect = ['E']\nextend-exclude = ['lib.py']\n"),
    ("pyproject.toml", "[tool.ruff]\nselect = ['E']\n", "[tool.ruff]\nselect = ['E']\ninclude = []\n"),
    (
        "pyproject.toml",
        "[tool.ruff.lint.mccabe]\nmax-complexity = 10\n",
        "[tool.ruff.lint.mccabe]\nmax-complexity = 100\n",
    ),
    (
        "pyproject.toml",
        "[tool.ruff]\nselect = ['E']\n",
        "[tool.ruff]\nselect = ['E']\n[tool.ruff.lint.per-file-ignores]\n'*' = ['E']\n",
    ),
    ("pyproject.toml", "[tool.ruff]\nselect = ['E']\n", "[tool.ruff]\nselect = ['E']\nextend = 'loose.toml'\n"),
    ("pyproject.toml", "[tool.ruff]\nselect = ['E']\n", "[tool.ruff]\nselect = ['E']\nexit-zero = true\n"),
    ("pyproject.toml", "[tool.coverage.report]\nfail_under = 90\n", "[tool.coverage.report]\n"),
    (
        "pyproject.toml",
        "[tool.coverage.report]\nfail_under = 90\n",
        "[tool.coverage.report]\nfail_under = 90\nomit = ['*']\n",
    ),
    (
        "pyproject.toml",
        "[tool.coverage.report]\nfail_under = 90\n",
        "[tool.coverage.report]\nfail_under = 90\nexclude_lines = ['.']\n",
    ),
    ("pyproject.toml", "[tool.coverage.run]\nbranch = true\n", "[tool.coverage.run]\nbranch = false\n"),
    ("pyproject.toml", "[tool.coverage.run]\nsource = ['lib']\n", "[tool.coverage.run]\nsource = ['none']\n"),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\naddopts = '--strict-markers'\n",
        "[tool.pytest.ini_options]\naddopts = ''\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\naddopts = '-q'\n",
        "[tool.pytest.ini_options]\naddopts = '-q -k not_f'\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\naddopts = '-q'\n",
        "[tool.pytest.ini_options]\naddopts = '-q --co'\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\ntestpaths = ['tests']\n",
        "[tool.pytest.ini_options]\ntestpaths = ['docs']\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\nxfail_strict = true\n",
        "[tool.pytest.ini_options]\nxfail_strict = false\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\nfilterwarnings = ['error']\n",
        "[tool.pytest.ini_options]\nfilterwarnings = ['error', 'ignore::UserWarning']\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\naddopts = '-q'\n",
        "[tool.pytest.ini_options]\naddopts = '-q'\npython_files = 'none_*.py'\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\naddopts = '-q'\n",
        "[tool.pytest.ini_options]\naddopts = '-q'\nnorecursedirs = 'tests'\n",
    ),
    (
        "pyproject.toml",
        "[tool.pytest.ini_options]\naddopts = '-q'\n",
        "[tool.pytest.ini_options]\naddopts = '-q'\npythonpath = 'fakes'\n",
    ),
    ("setup.cfg", "[flake8]\nmax-line-length = 79\n", "[flake8]\nmax-line-length = 300\n"),
    ("setup.cfg", "[flake8]\nselect = E,F\n", "[flake8]\nselect = E\n"),
    ("setup.cfg", "[mypy]\nwarn_return_any = True\n", "[mypy]\nwarn_return_any = False\n"),
    ("setup.cfg", "[tool:pytest]\naddopts = -q\n", "[tool:pytest]\naddopts = -q -x\n"),
    ("setup.cfg", "[metadata]\nname = a\n", "[metadata]\nname = a\n[flake8]\nexclude = *\n"),
    (
        "setup.cfg",
        "[mypy]\nwarn_return_any = True\n",
        "[mypy]\nwarn_return_any = True\n[mypy-lib.*]\nignore_errors = True\n",
    ),
    (".pylintrc", "[MESSAGES CONTROL]\ndisable=C\n", "[MESSAGES CONTROL]\ndisable=all\n"),
    ("tox.ini", "[testenv]\ncommands =\n    pytest\n    mypy .\n", "[testenv]\ncommands =\n    pytest\n"),
    ("tox.ini", "[testenv]\ncommands =\n    pytest\n", "[testenv]\ncommands =\n    - pytest\n"),
    ("tox.ini", "[testenv]\ncommands =\n    pytest\n", "[testenv]\ncommands =\n    pytest\nignore_outcome = true\n"),
    ("tox.ini", "[tox]\nenvlist = py3,lint\n", "[tox]\nenvlist = py3\n"),
    ("package.json", '{"scripts": {"test": "jest"}}', '{"scripts": {"test": "jest || true"}}'),
    ("package.json", '{"scripts": {"test": "jest"}}', '{"scripts": {"test": "echo ok"}}'),
    ("package.json", '{"scripts": {"test": "jest"}}', '{"scripts": {"test": "jest --passWithNoTests"}}'),
    (".eslintrc.json", '{"rules": {"no-undef": "error"}}', '{"rules": {"no-undef": "warn"}}'),
    (".eslintrc.json", '{"rules": {"no-undef": "error"}}', '{"rules": {}}'),
    (".eslintrc.json", '{"rules": {"no-undef": ["error", {"a": 1}]}}', '{"rules": {"no-undef": [0]}}'),
    (".eslintrc.json", '{"rules": {"no-undef": 2}}', '{"rules": {"no-undef": 0}}'),
    ("tsconfig.json", '{"compilerOptions": {"strict": true}}', '{"compilerOptions": {"strict": false}}'),
    (
        "tsconfig.json",
        '{"compilerOptions": {"strict": true}}',
        '{"compilerOptions": {"strict": true, "skipLibCheck": true}}',
    ),
    ("pyrightconfig.json", '{"typeCheckingMode": "strict"}', '{"typeCheckingMode": "off"}'),
    ("pyrightconfig.json", '{"reportMissingImports": "error"}', '{"reportMissingImports": "none"}'),
    ("pyrightconfig.json", '{"include": ["src"]}', '{"include": []}'),
    ("Cargo.toml", '[lints.rust]\nunsafe_code = "forbid"\n', '[lints.rust]\nunsafe_code = "allow"\n'),
    (".eslintignore", None, "*\n"),
    (".ruffignore", None, "*\n"),
    ("setup.cfg", None, "[flake8]\nignore = E\n"),
    ("tox.ini", None, "[pytest]\naddopts = -x\n"),
    (
        ".github/workflows/ci.yml",
        "on: [push]\njobs:\n  a:\n    steps:\n    - run: pytest\n",
        "on: [workflow_dispatch]\njobs:\n  a:\n    steps:\n    - run: pytest\n",
    ),
]
COMMANDS = [
    ("pytest", "pytest --exitfirst tests/one.py"),
    ("pytest", "echo pytest"),
    ("pytest", "true pytest"),
    ("pytest", "# pytest"),
    ("pytest", "pytest | cat"),
    ("pytest", "pytest &"),
    ("pytest", "pytest; exit 0"),
    ("pytest", "set +e; pytest; true"),
    ("pytest", "! pytest"),
    ("pytest", "pytest --co"),
    ("pytest", "pytest || :"),
    ("pytest", "(pytest || true)"),
    ("pytest", "if pytest; then :; fi"),
    ("pytest", "pytest -k x"),
    ("pytest", "timeout 1 pytest; :"),
    ("mypy --strict .", "mypy ."),
    ("ruff check .", "ruff check . --exit-zero"),
    ("pytest", "pytest 2>&1 | tee log"),
    ("pytest", "pytest || echo failed"),
]
BUILDS = [
    (CI, "- run: pytest\n", "- run: pytest\n  continue-on-error: true\n"),
    (CI, "- run: pytest\n", "- run: pytest\n  if: ${{ false }}\n"),
    (CI, "- run: pytest\n", ""),
    (CI, "- run: pytest\n", "- run: |\n    exit 0\n    pytest\n"),
    ("Makefile", "check: lint test\nlint:\n\tmypy .\n", "check: test\nlint:\n\tmypy .\n"),
    ("Makefile", "check:\n\tpytest\n", "check:\n\tpytest\n\ncheck:\n\t@echo ok\n"),
    ("Makefile", "check:\n\t$(PY) -m pytest\n", "PY = true\ncheck:\n\t$(PY) -m pytest\n"),
    ("Makefile", "PY = python\ncheck:\n\t$(PY) -m pytest\n", "PY = true\ncheck:\n\t$(PY) -m pytest\n"),
    ("Makefile", "check:\n\tpytest\n", ".IGNORE:\ncheck:\n\tpytest\n"),
    ("Makefile", "check:\n\tpytest\n", "SHELL = /bin/true\ncheck:\n\tpytest\n"),
    ("Makefile", "check:\n\tpytest\n", "MAKEFLAGS += -i\ncheck:\n\tpytest\n"),
    ("Makefile", "check:\n\tpytest\n", "check:\n\tpytest\ninclude x.mk\n"),
    ("Makefile", "check:\n\tpytest\n", ".PHONY: check\ncheck:\n\t@-pytest\n"),
    ("Makefile", "check:\n\tpytest\n", "check: ;\ncheck2:\n\tpytest\n"),
    ("GNUmakefile", None, "x:\n"),
    (
        ".pre-commit-config.yaml",
        "- repo: x\n  hooks:\n  - id: mypy\n",
        "- repo: x\n  hooks:\n  - id: mypy\n    exclude: lib\n",
    ),
    (".pre-commit-config.yaml", "- repo: x\n  hooks:\n  - id: mypy\n", "- repo: x\n  hooks:\n  - id: black\n"),
    (
        ".pre-commit-config.yaml",
        "- repo: x\n  hooks:\n  - id: mypy\n",
        "- repo: x\n  hooks:\n  - id: mypy\n    stages: [manual]\n",
    ),
    (
        "noxfile.py",
        "import nox\n\n@nox.session\ndef tests(session):\n    session.run('pytest')\n",
        "import nox\n\n@nox.session\ndef tests(session):\n    session.run('pytest', success_codes=[0, 1])\n",
    ),
    ("scripts/test.sh", "set -e\npytest\n", "pytest\n"),
    ("scripts/check.sh", "pytest\nmypy .\n", "pytest\n"),
    ("CMakeLists.txt", "add_test(NAME a COMMAND a)\n", ""),
    (
        "CMakeLists.txt",
        "add_test(NAME a COMMAND a)\n",
        "add_test(NAME a COMMAND a)\nset_tests_properties(a PROPERTIES WILL_FAIL TRUE)\n",
    ),
    ("CMakeLists.txt", "add_compile_options(-Werror)\n", "add_compile_options(-w)\n"),
    ("build.gradle", "x\n", "x\ntest.ignoreFailures = true\n"),
    ("build.gradle", "x\n", "x\ntest.enabled = false\n"),
]


@pytest.mark.parametrize("edit", SOURCES, ids=str)
def test_what_keeps_a_linter_quiet_is_named(edit):
    assert named(edit)


@pytest.mark.parametrize("edit", CONFIGURATIONS, ids=str)
def test_a_configuration_that_asks_for_less_is_named(edit):
    assert named(edit)


@pytest.mark.parametrize("before, after", COMMANDS)
def test_a_command_that_is_forgiven_or_narrowed_is_named(before, after):
    assert named((CI, f"- run: {before}\n", f"- run: {after}\n"))
    assert named(("Makefile", f"check:\n\t{before}\n", f"check:\n\t{after}\n"))


@pytest.mark.parametrize("edit", BUILDS, ids=str)
def test_a_build_that_runs_less_is_named(edit):
    assert named(edit)
