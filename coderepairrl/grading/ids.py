"""Names of one test: a row's node id "tests/x_test.py::TestA::test_b[1-a]", JUnit's "tests.x_test.TestA::test_b[1-a]",
Django's "test_b (x.TestA)".

SWE-bench's rows were read from logs, so their ids are cut at the first white space ("test_b[select" for "test_b[select
1]",
"all.case::one" for an item that is called "one plus one"), and those of one parser hold only the last part of an
absolute path in
brackets. `lookup` finds the tests that such an id stands for.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from coderepairrl.grading.junit import ORDER

_DJANGO = re.compile(r"(\w+) \(([\w.]+)\)")
_ABSOLUTE = re.compile(r"\[(/[^/*][^*]*)\]?$")


def to_junit(test: str) -> str:
    """The id under which pytest (junit_family=xunit1) or unittest's XML runners report `test`; one that is such an id
    stays as it is."""
    if django := _DJANGO.fullmatch(test):
        name, case = django.groups()
        return f"{case.removesuffix('.' + name)}::{name}"  # Python 3.11 and newer repeat the name
    address, bracket, parameters = test.partition("[")
    first, *others = address.split("::")
    names = [first.replace("/", ".").removesuffix(".py"), *others]
    return f"{'.'.join(names[:-1])}::{names[-1]}{bracket}{parameters}"


def to_node(test: str, files: list[str] | tuple[str, ...]) -> str | None:
    """The node id of a JUnit id, given the files that it may be in (JUnit's dots don't say where the path ends). None:
    in none of them."""
    address, bracket, parameters = test.partition("[")
    classname, _, name = address.rpartition("::")
    for file in sorted(files, key=len, reverse=True):
        module = file.replace("/", ".").removesuffix(".py")
        if classname == module or classname.startswith(module + "."):
            classes = classname[len(module) + 1 :].split(".") if classname != module else []
            return "::".join([file, *classes, name]) + bracket + parameters
    return None


def function_of(test: str) -> str:
    """The bare name of the test function."""
    return to_junit(test).partition("[")[0].rpartition("::")[2]


class Statuses:
    """What a report says of each test, found by any of a test's names."""

    def __init__(self, found: Mapping[str, str]):
        self.found = found

    def lookup(self, test: str) -> str:
        """passed | xfailed | skipped | failed | error | missing. An id that stands for several tests has the worst of
        their statuses."""
        if test in self.found:
            return self.found[test]
        wanted = to_junit(test)
        statuses = self._by_junit.get(wanted)
        if not statuses and ("::" in test or "/" in test):  # a name in words, as other runners' are, is no cut one
            statuses = self._by_cut.get(wanted.removeprefix("::"))  # a cut path has nothing before its "::"
        if not statuses and "[" in wanted:
            statuses = self._by_last_part.get(_last_part(wanted))
            if not statuses and wanted.count("[") > wanted.count("]"):
                statuses = [status for name, status in self.found.items() if to_junit(name).startswith(wanted)]
        return max(statuses, key=ORDER.index) if statuses else "missing"

    @cached_property
    def _by_junit(self) -> dict[str, list[str]]:
        return self._index(lambda name: name)

    @cached_property
    def _by_cut(self) -> dict[str, list[str]]:
        return self._index(lambda name: name.split()[0] if name.split() else name)

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        return self._index(_last_part)

    def _index(self, key) -> dict[str, list[str]]:
        index = defaultdict(list)
        for name, status in self.found.items():
            index[key(to_junit(name))].append(status)
        return dict(index)


def _last_part(test: str) -> str:
    """test[/a/b/c.dcm] -> test[/c.dcm]"""
    return _ABSOLUTE.sub(lambda match: f"[/{match[1].rpartition('/')[2]}]", test)
