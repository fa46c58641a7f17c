"""Which tests of a suite fail with each of many bugs, far faster than by running the suite for each: it is imported
and run once, and each bug is tried in a fork, where the code of the function that holds it is replaced in place.

    python -P failing_tests.py JOB.json OUT.jsonl        in the checkout
    JOB: {"pytest": [arguments], "bugs": [{"id", "path", "edits", "vain": [edits, ...]}], "seconds": of a bug's tests}

A row of OUT: {"id", "failing": [ids], "details": {id: traceback of some of them}, "over": whether the time was up,
"vain": [whether these edits beside the bug's leave all of the tests in `details` failing]}. A bug that is not inside
of a function's body, or that no test runs which passes in a fork, too, has no row. What is found so is evidence, no
verdict: a task is admitted by runs of the suite in fresh sandboxes.
"""

import ast
import gc
import json
import os
import signal
import sys
import time
import types

import pytest
from _pytest.runner import runtestprotocol

MOST_FAILING = 13  # a bug that fails more is loud, and takes long
MOST_DETAILS = 4
MOST_TESTS = 60  # of those that run the function, the quickest


class Suite:
    """A plugin of pytest: in place of the loop over the tests it runs them once, then the bugs."""

    def __init__(self, job, out):
        self.job, self.out, self.root = job, out, os.getcwd() + os.sep
        self.callers, self.seconds = {}, {}  # (path, outermost function) -> tests; test -> seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        passing = self.first_run(session.items)
        functions: dict = {}
        for function in [o for o in gc.get_objects() if isinstance(o, types.FunctionType)]:
            functions.setdefault(self.place(function.__code__), []).append(function)
        gc.collect()
        gc.freeze()  # a fork touches fewer pages
        steady = set(
            self.in_fork(lambda: {"passing": [item.nodeid for item in passing if not self.run(item)]}, 600)["passing"]
        )
        self.items = {item.nodeid: item for item in passing if item.nodeid in steady}
        with open(self.out, "w") as out:
            for bug in self.job["bugs"]:
                row = self.tried(bug, functions)
                if row:
                    out.write(json.dumps({"id": bug["id"], **row}) + "\n")
                    out.flush()
        return True

    def place(self, code):
        name = code.co_filename
        path = name[len(self.root) :] if name.startswith(self.root) else name
        return path, code.co_qualname.split(".<locals>")[0]

    def first_run(self, items):
        """Those that pass; which functions each calls is remembered."""
        passing = []
        for number, item in enumerate(items):
            called: set = set()
            began = time.perf_counter()

            def profile(frame, event, _, called=called):
                if event == "call":
                    called.add(frame.f_code)

            sys.setprofile(profile)
            try:
                reports = runtestprotocol(
                    item, nextitem=items[number + 1] if number + 1 < len(items) else None, log=False
                )
            finally:
                sys.setprofile(None)
            if not any(report.failed or report.skipped for report in reports):
                passing.append(item)
                self.seconds[item.nodeid] = time.perf_counter() - began
                for code in called:
                    if code.co_filename.startswith(self.root):
                        self.callers.setdefault(self.place(code), set()).add(item.nodeid)
        return passing

    def run(self, item):
        """The reports of a test that fails, or None."""
        if hasattr(item, "_initrequest"):
            item._initrequest()  # as pytest-rerunfailures does: its fixtures are made again
        reports = runtestprotocol(item, nextitem=None, log=False)
        return [report for report in reports if report.failed] or None

    def in_fork(self, work, seconds):
        """What `work` returns, as JSON; None where it died or took longer."""
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            os.setsid()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(seconds) + 1)
            try:
                data = json.dumps(work()).encode()
                while data:
                    data = data[os.write(write, data) :]
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as said:
            data = said.read()
        os.waitpid(child, 0)
        return json.loads(data) if data else None

    def tried(self, bug, functions):
        with open(bug["path"], newline="") as file:
            text = file.read()
        outermost = outermost_function(text, bug["edits"])
        callers = self.callers.get((bug["path"], outermost), set()) & set(self.items)
        tests = sorted(callers, key=lambda test: self.seconds[test])
        places = [f for f in functions.get((bug["path"], outermost), []) if f.__code__.co_qualname == outermost]
        code = replaced(text, bug["path"], bug["edits"], outermost)
        if not code or not tests or not places:
            return None
        found = self.in_fork(lambda: self.failing(places, code, tests[:MOST_TESTS]), self.job["seconds"] + 1)
        if found and found["failing"] and len(found["failing"]) < MOST_FAILING:
            found["vain"] = [
                self.vain(places, text, bug, edits, outermost, list(found["details"])) for edits in bug["vain"]
            ]
        return found

    def failing(self, places, code, tests):
        put(code, places)
        failing: list = []
        details: dict = {}
        stop = time.monotonic() + self.job["seconds"]
        for test in tests:
            reports = self.run(self.items[test])
            if reports:
                failing.append(test)
                if len(details) < MOST_DETAILS:
                    details[test] = reports[0].longreprtext[-6000:]
            if len(failing) >= MOST_FAILING or time.monotonic() > stop:
                break
        return {"failing": failing, "details": details, "over": time.monotonic() > stop}

    def vain(self, places, text, bug, edits, outermost, tests):
        code = replaced(text, bug["path"], [*bug["edits"], *edits], outermost)
        if not code:
            return False
        found = self.in_fork(lambda: self.failing(places, code, tests), self.job["seconds"] + 1)
        return bool(found) and found["failing"] == tests


def put(code, places):
    for function in places:
        function.__code__ = code


def outermost_function(text, edits):
    """The dotted name of the outermost function in whose body all edits lie, or None."""
    line_of = lambda at: text.count("\n", 0, at) + 1
    first, last = (
        min(line_of(start) for start, _, _ in edits),
        max(line_of(max(start, end - 1)) for start, end, _ in edits),
    )

    def find(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if child.body[0].lineno <= first and last <= child.end_lineno:
                    return prefix + child.name
            else:
                found = find(child, prefix + child.name + "." if isinstance(child, ast.ClassDef) else prefix)
                if found:
                    return found
        return None

    return find(ast.parse(text), "")


def replaced(text, path, edits, outermost):
    """The code object of the function with these edits, or None."""
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    try:
        left = [compile(text, os.path.abspath(path), "exec")]
    except SyntaxError:
        return None
    while left:
        code = left.pop()
        if code.co_qualname == outermost:
            return code
        left += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return None


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        job = json.load(file)
    sys.exit(pytest.main(job["pytest"], plugins=[Suite(job, sys.argv[2])]))
