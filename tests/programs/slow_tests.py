"""Which test functions are slow, from a report of all tests: what tests/slow.txt holds.

bash scripts/test.sh --junitxml=report.xml
python tests/programs/slow_tests.py report.xml > tests/slow.txt
"""

import sys
from xml.etree import ElementTree

SLOW_S = 1.2  # of a case, among others on all cores


def slow(report: str) -> list[str]:
    found = set()
    for case in ElementTree.parse(report).iter("testcase"):
        if float(case.get("time", 0)) >= SLOW_S:
            path = case.get("classname", "").replace(".", "/")
            found.add(f"{path}.py::{case.get('name', '').partition('[')[0]}")
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(slow(sys.argv[1])))
