"""Code under test that attacks the judge from inside the process, by name: for test_attacks_process.py. All of it
leaves `f` wrong."""

# what an attack finds out first: its command line, the report's folder, the canary's names
LOOK = """
import sys, os, re
argv = " ".join(sys.argv)
folder = re.search(r"(/[^ =]*junit)", argv)[1]
module = re.search(r"(test_[0-9a-f]{16})", argv)[1]
case, name = re.findall(r"(Test[0-9a-f]{16}|test_[0-9a-f]{16})", open(module + ".py").read())
"""
CASES = 'cases = "".join(f\'<testcase classname="{c}" name="{n}"/>\' for c, n in TESTS)\n'
FORGED = (
    LOOK
    + CASES
    + """
canary = f'<testcase classname="{module}.{case}" name="{name}"><failure/></testcase>'
def forge():
    for old in os.listdir(folder): os.remove(folder + "/" + old)
    open(folder + "/report.xml", "w").write("<testsuite>" + cases + canary + "</testsuite>")
"""
)
START_AGAIN = "    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])\n"
SPARE = "re.search('[0-9a-f]{16}', str(%s))"  # the canary

# attack -> (code, what the message says; None: the tests just fail)
BOTH = {
    "prints success and leaves": ("print('OK\\n2 passed'); import os; os._exit(0)\n", "no report"),
    "leaves without a word": ("import os; os._exit(1)\n", "no report"),
    "leaves at the end": (
        "import atexit, os, sys\ndef leave():\n    sys.stdout.flush(); os._exit(0)\natexit.register(leave)\n",
        "exit code is 0",
    ),
    "ends with success": ("import sys\nsys.exit = lambda code=0: os._exit(0)\nimport os\n", None),
    "writes a report without the canary": (
        LOOK + CASES + "open(folder + '/report.xml', 'w').write('<testsuite>' + cases + '</testsuite>'); os._exit(0)\n",
        "which must fail, is missing",
    ),
    "writes a report with a failing canary": (FORGED + "forge(); os._exit(1)\n", "also where it must fail"),
    "rewrites the report at exit": (FORGED + "import atexit\natexit.register(forge)\n", "also where it must fail"),
    "puts a folder where a report should be": (
        FORGED + "folder += '/a'; os.makedirs(folder); os.rename(folder, folder + '.xml')\n",
        "not a regular file",
    ),
    "declares entities": (
        LOOK + "open(folder + '/report.xml', 'w').write('<!DOCTYPE x [<!ENTITY a \"b\">]><testsuite>&a;</testsuite>'); "
        "os._exit(1)\n",
        "document type",
    ),
    "reports by a link": (
        LOOK + "os.symlink('/etc/passwd', folder + '/report.xml'); os._exit(1)\n",
        "not a regular file",
    ),
    "reports by a pipe": (LOOK + "os.mkfifo(folder + '/report.xml'); os._exit(1)\n", "not a regular file"),
    "reports by very many files": (
        LOOK + "for i in range(1100): open(f'{folder}/{i}.xml', 'w')\nos._exit(1)\n",
        "more than 1000",
    ),
    "a thread forges after the end": (
        FORGED
        + "import threading, time, _thread\ndef late():\n    threading.main_thread().join(); forge(); os._exit(1)\n"
        "threading.Thread(target=late).start()\n",
        "also where it must fail",
    ),
    "a process of its own session forges later": (
        FORGED + "import time\nif os.fork() == 0:\n    os.setsid()\n    while os.getppid() != 1: time.sleep(0.01)\n"
        "    time.sleep(0.2); forge(); os._exit(0)\n",
        None,
    ),
    "becomes another program": (FORGED + "forge(); os.execv('/bin/false', ['false'])\n", "also where it must fail"),
    "kills its parents": (
        "import os, signal\nfor pid in (os.getppid(), 1):\n    try: os.kill(pid, signal.SIGKILL)\n"
        "    except OSError: pass\n",
        None,
    ),
    "kills all that it may": (
        "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(os.getpid(), signal.SIGKILL)\n",
        None,
    ),
    "forks without end": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: os._exit(1)\n", "no report"),
    "removes the canary": (LOOK + "os.remove(module + '.py')\n", None),
    "replaces the canary": (
        LOOK + "open(module + '.py', 'w').write(f'import unittest\\nclass {case}(unittest.TestCase):\\n    def "
        "{name}(self): self.fail()\\n')\n"
        "import unittest.case\n_r = unittest.case.TestCase.assertEqual\n"
        "unittest.case.TestCase.assertEqual = lambda *a, **k: None\n",
        None,
    ),
    "rewrites the hidden tests": (
        "import pathlib\nfor p in pathlib.Path('.').rglob('test_hidden.py'): p.write_text('def test_keep(): "
        "pass\\n')\n",
        None,
    ),
    "plants bytecode": (
        "import os, py_compile, pathlib\nfor p in pathlib.Path('.').rglob('test_hidden.py'):\n"
        "    open('/tmp/t.py', 'w').write('x = 1\\n')\n"
        "    py_compile.compile('/tmp/t.py', str(p.parent / '__pycache__' / 'test_hidden.cpython-311.pyc'))\n",
        None,
    ),
    "replaces tests as their class is made": (
        "import builtins\n_b = builtins.__build_class__\ndef build(body, name, *bases, **k):\n"
        "    cls = _b(body, name, *bases, **k)\n    if 'Hidden' in name:\n"
        "        for n in [n for n in vars(cls) if n.startswith('test_')]:\n"
        "            p = getattr(vars(cls)[n], 'pytestmark', None)\n"
        "            t = (lambda self, a: None) if p else (lambda self: None)\n            t.__name__ = n\n"
        "            if p: t.pytestmark = p\n            setattr(cls, n, t)\n    return cls\n"
        "builtins.__build_class__ = build\n",
        "also where it must fail",
    ),
    "equals everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = int.__hash__\n"
        "_wrong = lambda a: Any(a)\n",
        "also where it must fail",
    ),
    "reads what is expected from its caller's source": (
        "import sys, linecache, re\ndef _asked(a):\n    frame = sys._getframe(2)\n"
        "    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()\n"
        "    m = re.fullmatch(r'(?:self.assertEqual\\(f\\(\\d+\\), (.*)\\)|assert f\\(a\\) == (.*))', line)\n"
        "    return eval(m[1] or m[2], frame.f_globals, frame.f_locals) if m else a\n_wrong = _asked\n",
        "also where it must fail",
    ),
    "stops the clock": ("import time\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\n", None),
    "seeds the hashes and starts again": (
        "import os, sys\nif os.environ.get('PYTHONHASHSEED') == '0':\n    os.environ['PYTHONHASHSEED'] = '1'\n"
        + START_AGAIN,
        None,
    ),
    "takes the place of a module": (
        "import sys, types\nfake = types.ModuleType('test_hidden')\n"
        "sys.modules['test_hidden'] = sys.modules['tests.test_hidden'] = fake\n",
        None,
    ),
    "floods the output": ("import sys\nfor _ in range(300): sys.stdout.write('PASSED OK ' * 1000)\n", None),
    "asks the network": (
        "import socket\ndef _asked(a):\n    socket.create_connection(('1.1.1.1', 80), 2)\n    return a + 1\n"
        "_wrong = _asked\n",
        None,
    ),
}
PYTEST_ONLY = {
    "patches how tests are run": (
        "import _pytest.python, _pytest.unittest\n_pytest.python.Function.runtest = lambda self: None\n"
        "_pytest.unittest.TestCaseFunction.runtest = lambda self: None\n",
        "which must fail, is",
    ),
    "patches the runner, sparing the canary": (
        "import re, _pytest.python\n_o = _pytest.python.Function.runtest\n"
        f"_pytest.python.Function.runtest = lambda self: _o(self) if {SPARE % 'self.nodeid'} else None\n",
        "also where it must fail",
    ),
    "patches the reports, sparing the canary": (
        "import re, _pytest.reports as r\n_o = r.TestReport.from_item_and_call.__func__\n"
        "def better(cls, item, call):\n    report = _o(cls, item, call)\n"
        f"    if not {SPARE % 'item.nodeid'}: report.outcome, report.longrepr = 'passed', None\n    return report\n"
        "r.TestReport.from_item_and_call = classmethod(better)\n",
        "also where it must fail",
    ),
    "patches a fresh copy of the report's writer": (
        "import importlib, re, sys, gc\nfresh = importlib.import_module('_pytest.junitxml')\n"
        "fresh._NodeReporter.append_failure = lambda self, report: self._add_simple('failure', 'x') if "
        f"{SPARE % 'report.nodeid'} else self.append_pass(report)\n",
        "also where it must fail",
    ),
    "finds the session by the collector and adds a plugin": (
        "import gc, re, pytest\nclass Plugin:\n    @pytest.hookimpl(hookwrapper=True)\n"
        "    def pytest_runtest_makereport(self, item, call):\n        out = yield\n"
        f"        if not {SPARE % 'item.nodeid'}: out.get_result().outcome = 'passed'\n"
        "config = next(o for o in gc.get_objects() if type(o).__name__ == 'Config' and hasattr(o, "
        "'pluginmanager'))\nconfig.pluginmanager.register(Plugin())\n",
        "also where it must fail",
    ),
    "starts again with options of its own": (
        "import os, sys\nif 'AGAIN' not in os.environ:\n"
        "    os.environ.update(AGAIN='1', PYTEST_ADDOPTS='-p lib -k keep')\n" + START_AGAIN,
        None,
    ),
    "calls its tests expected failures": ("import pytest\ndef _wrong(a): pytest.xfail('later')\n", None),
    "skips its tests": ("import pytest\ndef _wrong(a): pytest.skip('later')\n", None),
    "ends the session": ("import pytest\ndef _wrong(a): pytest.exit('done', 0)\n", None),
    "knows that it is tested": (
        "import os\ndef _wrong(a): return a + 1 if 'test_keep' in os.environ.get('PYTEST_CURRENT_TEST', '') else "
        "a + 2\n",
        None,
    ),
}
UNITTEST_ONLY = {
    "makes every assertion pass": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n",
        "which must fail, is",
    ),
    "makes every assertion pass but the canary's": (
        "import re, unittest\n_o = unittest.TestCase.assertEqual\n"
        f"unittest.TestCase.assertEqual = lambda self, *a, **k: _o(self, *a, **k) if {SPARE % 'self.id()'} else None\n",
        "also where it must fail",
    ),
    "turns failures into successes": (
        "import re, unittest, xmlrunner.result as x\n_o = x._XMLTestResult.addFailure\n"
        f"x._XMLTestResult.addFailure = lambda self, t, e: _o(self, t, e) if {SPARE % 't.id()'} else "
        "self.addSuccess(t)\n",
        "also where it must fail",
    ),
    "skips its tests": ("import unittest\ndef _wrong(a): raise unittest.SkipTest('later')\n", None),
    "leaves in the middle": ("def _wrong(a): raise SystemExit(0)\n", None),
    "interrupts": ("def _wrong(a): raise KeyboardInterrupt\n", None),
}
# pytest catches what is printed; the log itself is one of the process's files
SAY = """
import os, re, sys
files = (os.readlink(f'/proc/self/fd/{fd}') for fd in range(20) if os.path.islink(f'/proc/self/fd/{fd}'))
log = next(p for p in files if p.endswith('log.txt'))
def say(more=''):
    open(log, 'a').write('\\n' + '\\n'.join(f'PASSED {c}::{n}' for c, n in TESTS) + more + '\\n')
m = re.search('test_[0-9a-f]{16}', ' '.join(sys.argv))[0]
a, b = re.findall('(Test[0-9a-f]{16}|test_[0-9a-f]{16})', open(m + '.py').read())
"""
LOG_ONLY = {
    "prints that its tests passed": (SAY + "import atexit\natexit.register(say)\n", "also where it must fail"),
    "prints that its tests passed and leaves": (SAY + "say(); os._exit(0)\n", "which must fail, is missing"),
    "prints a canary, too": (SAY + "say(f'\\nFAILED {m}.py::{a}::{b} - x'); os._exit(1)\n", "also where it must fail"),
}
