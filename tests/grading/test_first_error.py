"""The first error of what a test command printed."""

import pytest

from coderepairrl.grading.output import first_error

RULE = "=" * 30
PYTEST = (
    f"{RULE} test session starts {RULE}\nplatform linux -- Python 3.11.7, pytest-8.4.2, pluggy-1.6.0\n"
    "rootdir: /repo\nconfigfile: pytest.ini\n"
)
COLLECTING = (
    PYTEST
    + f"""collected 0 items / 1 error

{RULE} ERRORS {RULE}
___________ ERROR collecting tests/test_hidden.py ___________
ImportError while importing test module '/repo/tests/test_hidden.py'.
Hint: make sure your test modules/packages have valid Python names.
Traceback:
/usr/lib/python3.11/importlib/__init__.py:126: in import_module
    return _bootstrap._gcd_import(name[level:], package, level)
tests/test_hidden.py:3: in <module>
    from lib import f, g
E   ModuleNotFoundError: No module named 'gone'
{RULE} short test summary info {RULE}
ERROR tests/test_hidden.py
!!!!!!!!!!!!!! Interrupted: 1 error during collection !!!!!!!!!!!!!!
{RULE} 1 error in 0.11s {RULE}
"""
)
LOADER = (
    'Traceback (most recent call last):\n  File "/usr/lib/python3.11/unittest/loader.py", line 162, in '
    "loadTestsFromName\n    module = __import__(module_name)\n"
)
FIRSTS = {  # name -> (output, exit code, the first error)
    # pytest
    "a file that is absent": (
        PYTEST + f"collected 0 items\n\n{RULE} no tests ran in 0.10s {RULE}\n"
        "ERROR: file or directory not found: tests/test_gone.py\n\n",
        4,
        "ERROR: file or directory not found: tests/test_gone.py",
    ),
    "the same, quietly": (
        "\nno tests ran in 0.1s\nERROR: file or directory not found: tests/test_gone.py\n",
        4,
        "ERROR: file or directory not found: tests/test_gone.py",
    ),
    "a test that is absent": (
        "ERROR: not found: /repo/tests/test_a.py::test_gone\n(no match in any of [<Module test_a.py>])\n\n"
        "no tests ran in 0.0s\n",
        4,
        "ERROR: not found: /repo/tests/test_a.py::test_gone",
    ),
    "usage": (
        "ERROR: usage: __main__.py [options] [file_or_dir] [...]\n"
        "__main__.py: error: unrecognized arguments: --ff\n  inifile: /repo/pytest.ini\n  rootdir: /repo\n\n",
        4,
        "__main__.py: error: unrecognized arguments: --ff",
    ),
    "usage of before": (
        "usage: pytest [options] [file_or_dir]\npytest: error: unrecognized arguments: --cov=lib\n"
        "  inifile: /repo/setup.cfg\n  rootdir: /repo\n",
        4,
        "pytest: error: unrecognized arguments: --cov=lib",
    ),
    "settings": (
        PYTEST + "ERROR: /repo/pytest.ini:2: unexpected line: 'x'\n\n",
        4,
        "ERROR: /repo/pytest.ini:2: unexpected line: 'x'",
    ),
    "a module that is absent": (COLLECTING, 2, "ModuleNotFoundError: No module named 'gone'"),
    "the same in colours": (
        COLLECTING.replace("E   ", "\x1b[1m\x1b[31mE   ").replace("'gone'", "'gone'\x1b[0m"),
        2,
        "ModuleNotFoundError: No module named 'gone'",
    ),
    "syntax": (
        COLLECTING.replace(
            "E   ModuleNotFoundError: No module named 'gone'",
            'E     File "/repo/lib.py", line 1\nE       def f(:\nE             ^\nE   SyntaxError: invalid syntax',
        ),
        2,
        "SyntaxError: invalid syntax",
    ),
    "an exception of its own": (
        COLLECTING.replace("E   ModuleNotFoundError: No module named 'gone'", "E   lib.Missing: no settings"),
        2,
        "lib.Missing: no settings",
    ),
    "a conftest": (
        "ImportError while loading conftest '/repo/conftest.py'.\nconftest.py:1: in <module>\n    import gone\n"
        "E   ModuleNotFoundError: No module named 'gone'\n",
        4,
        "ModuleNotFoundError: No module named 'gone'",
    ),
    "a fixture": (
        "file /repo/test_a.py, line 1\n  def test_a(gone):\nE       fixture 'gone' not found\n"
        ">       available fixtures: cache\n",
        1,
        "fixture 'gone' not found",
    ),
    "a summary alone": (
        "ERROR tests/test_a.py - ModuleNotFoundError: No module named 'gone'\n1 error in 0.1s\n",
        2,
        "ERROR tests/test_a.py - ModuleNotFoundError: No module named 'gone'",
    ),
    "its own bug": (
        "INTERNALERROR> Traceback (most recent call last):\n"
        'INTERNALERROR>   File "/venv/main.py", line 5, in x\nINTERNALERROR>     y()\n'
        "INTERNALERROR> KeyError: 'x'\n\n",
        3,
        "KeyError: 'x'",
    ),
    "nothing was collected": (
        PYTEST + f"collected 0 items\n\n{RULE} no tests ran in 0.01s {RULE}\n",
        5,
        f"{RULE} no tests ran in 0.01s {RULE}",
    ),
    "no pytest": ("/usr/bin/python3: No module named pytest\n", 1, "/usr/bin/python3: No module named pytest"),
    "a warning before": (
        "/venv/x.py:3: DeprecationWarning: error: old\n  import imp\nWARNING: error: no cache\n"
        "pytest: error: unrecognized arguments: -z\n",
        4,
        "pytest: error: unrecognized arguments: -z",
    ),
    # other runners and wrappers
    "unittest": (
        "E\n"
        + RULE
        + "\nERROR: test_gone (unittest.loader._FailedTest.test_gone)\n"
        + "-" * 30
        + "\nImportError: Failed to import test module: test_gone\n"
        + LOADER
        + "ModuleNotFoundError: No module named 'gone'\n\n\n"
        + "-" * 30
        + "\nRan 1 test in 0.000s\n\nFAILED (errors=1)\n",
        1,
        "ModuleNotFoundError: No module named 'gone'",
    ),
    "two of unittest": (
        LOADER
        + "ModuleNotFoundError: No module named 'one'\n\n"
        + LOADER
        + "ModuleNotFoundError: No module named 'two'\n",
        1,
        "ModuleNotFoundError: No module named 'one'",
    ),
    "a script": (
        "python3: can't open file '/repo/runtests.py': [Errno 2] No such file or directory\n",
        2,
        "python3: can't open file '/repo/runtests.py': [Errno 2] No such file or directory",
    ),
    "Django": (
        LOADER + "django.core.exceptions.ImproperlyConfigured: Requested setting X, but settings are not configured.\n",
        1,
        "django.core.exceptions.ImproperlyConfigured: Requested setting X, but settings are not configured.",
    ),
    "tox": (
        "py311: commands[0]> pytest tests/x\nERROR: file or directory not found: tests/x\n\n"
        "py311: exit 4 (0.53 seconds) /repo> pytest tests/x pid=123\n"
        "  py311: FAIL code 4 (0.60=setup[0.05]+cmd[0.53] seconds)\n  evaluation failed :( (0.65 seconds)\n",
        4,
        "ERROR: file or directory not found: tests/x",
    ),
    "tox of before": (
        "E   ImportError: cannot import name 'f'\n"
        "ERROR: InvocationError for command /repo/.tox/py36/bin/pytest (exited with code 2)\n",
        1,
        "ImportError: cannot import name 'f'",
    ),
    "tox without Python": (
        "ERROR: py36: InterpreterNotFound: python3.6\n",
        1,
        "ERROR: py36: InterpreterNotFound: python3.6",
    ),
    "bash": (
        "setting up\nbash: line 1: pytset: command not found\nnothing more\n",
        127,
        "bash: line 1: pytset: command not found",
    ),
    "dash": (
        "/bin/sh: 1: pytest: not found\nmake: *** [Makefile:2: test] Error 127\n",
        2,
        "/bin/sh: 1: pytest: not found",
    ),
    "env": (
        "/usr/bin/env: 'python3.6': No such file or directory\n",
        127,
        "/usr/bin/env: 'python3.6': No such file or directory",
    ),
    "make": ("make: *** No rule to make target 'test'.  Stop.\n", 2, "make: *** No rule to make target 'test'. Stop."),
    "Maven": (
        "[INFO] Scanning for projects...\n[WARNING] no encoding\n[INFO] -----\n[ERROR] COMPILATION ERROR : \n"
        "[INFO] -----\n"
        "[ERROR] /repo/src/A.java:[3,5] cannot find symbol\n[ERROR]   symbol:   class B\n[INFO] BUILD FAILURE\n"
        "[ERROR] Failed to execute goal org.apache.maven.plugins:maven-compiler-plugin:3.1:compile "
        "(default-compile) on project x\n[ERROR] -> [Help 1]\n",
        1,
        "/repo/src/A.java:[3,5] cannot find symbol",
    ),
    "javac": (
        "A.java:3: error: cannot find symbol\n    B b;\n    ^\n1 error\n",
        1,
        "A.java:3: error: cannot find symbol",
    ),
    "go": (
        "# example.com/m\n./a.go:3:2: undefined: x\nFAIL\texample.com/m [build failed]\nFAIL\n",
        1,
        "./a.go:3:2: undefined: x",
    ),
    "go without a module": (
        "go: downloading x v1.0.0\ngo: cannot find main module, but found .git/config in /repo\n",
        1,
        "go: cannot find main module, but found .git/config in /repo",
    ),
    "go panics": (
        "=== RUN   TestA\n--- FAIL: TestA (0.00s)\n"
        "panic: runtime error: index out of range [1] with length 0 [recovered]\n",
        2,
        "panic: runtime error: index out of range [1] with length 0 [recovered]",
    ),
    "npm": (
        'npm ERR! Missing script: "test"\nnpm ERR! \nnpm ERR! To see a list of scripts, run:\n'
        "npm ERR!   npm run\n\nnpm ERR! A complete log of this run can be found in: /x\n",
        1,
        'Missing script: "test"',
    ),
    "npm of today": (
        "npm error code ENOENT\nnpm error syscall open\nnpm error path /repo/package.json\nnpm error errno -2\n"
        "npm error enoent Could not read package.json: Error: ENOENT: no such file or directory\n",
        254,
        "enoent Could not read package.json: Error: ENOENT: no such file or directory",
    ),
    "npm's runner": (
        "> x@1.0.0 test\n> jest\n\nsh: 1: jest: not found\nnpm ERR! code ELIFECYCLE\nnpm ERR! errno 127\n",
        127,
        "sh: 1: jest: not found",
    ),
    "node": (
        "node:internal/modules/cjs/loader:1080\n  throw err;\n  ^\n\nError: Cannot find module 'jest'\n"
        "Require stack:\n",
        1,
        "Error: Cannot find module 'jest'",
    ),
    "cargo": (
        "   Compiling x v0.1.0 (/repo)\nerror[E0425]: cannot find value `x` in this scope\n --> src/lib.rs:2:5\n"
        "error: could not compile `x`\n",
        101,
        "error[E0425]: cannot find value `x` in this scope",
    ),
    "gcc": (
        "a.c: In function 'f':\na.c:3:5: error: 'x' undeclared\na.c:4:5: error: 'y' undeclared\n",
        1,
        "a.c:3:5: error: 'x' undeclared",
    ),
    "Ruby": (
        "bundler: command not found: rspec\nInstall missing gem executables with `bundle install`\n",
        127,
        "bundler: command not found: rspec",
    ),
    "PHP": (
        "PHP Fatal error:  Uncaught Error: Call to undefined function f() in /repo/a.php:2\n",
        255,
        "PHP Fatal error: Uncaught Error: Call to undefined function f() in /repo/a.php:2",
    ),
    # ends without a word, or with another's
    "a crash that says so": (
        "tests/test_a.py Fatal Python error: Segmentation fault\n\nCurrent thread 0x0 (most recent call first):\n",
        139,
        "ended by SIGSEGV",
    ),
    "a crash at the beginning of a line": (
        "..\nFatal Python error: Segmentation fault\n\nCurrent thread\n",
        139,
        "Fatal Python error: Segmentation fault",
    ),
    "a crash, by the shell": (
        "bash: line 1:    12 Segmentation fault      (core dumped) python -m pytest\n",
        139,
        "ended by SIGSEGV",
    ),
    "a crash without a word": ("", 139, "ended by SIGSEGV"),
    "memory": (
        "collected 3 items\n\ntests/test_a.py .\n[killed: memory limit of 2048 MiB]\n",
        137,
        "memory limit of 2048 MiB",
    ),
    "memory, by the kernel": (
        "collected 3 items\n",
        137,
        "ended by SIGKILL, from outside: where nobody sent it, the kernel did, for want of memory",
    ),
    "a time limit": ("E   ValueError: x\n[killed: time limit of 60 s]\n", 124, "time limit of 60 s"),
    "a progress bar": (
        "  0%|  |\r 50%|# |\r100%|##|\r\nbash: line 1: x: command not found\r\n",
        127,
        "bash: line 1: x: command not found",
    ),
    "nothing": ("", 1, "no output"),
    "blanks": ("\n \r\n\x1b[0m\n", 1, "no output"),
    "a word": ("bye\n", 1, "bye"),
}


@pytest.mark.parametrize("name", FIRSTS)
def test_the_first_error_is_quoted(name):
    output, exit_code, expected = FIRSTS[name]
    assert first_error(output, exit_code) == expected


def test_of_a_large_output_the_ends_are_searched():
    noise = "x = 1\n" * (8 << 20)
    assert first_error(f"fatal: a\n{noise}") == first_error(f"{noise}fatal: a\n") == "fatal: a"
