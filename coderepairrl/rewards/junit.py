"""Reading JUnit XML that untrusted code may have written: bounded, no symlinks, no entities, the worst status wins."""
import os
import stat
from pathlib import Path
from xml.parsers import expat

MAX_REPORT_BYTES = 32 << 20  # of all reports together
MAX_REPORTS = 1000
_ORDER = ("passed", "skipped", "failed", "error")  # better to worse: a forged duplicate cannot hide a failure


class ReportError(ValueError):
    """The report is not one: the message says why, for Verdict.message."""


def read_reports(folder: Path) -> dict[str, str]:
    """id "classname::name" -> passed | skipped | failed | error, over all *.xml of the folder; empty when there are none."""
    statuses: dict[str, str] = {}
    left = MAX_REPORT_BYTES
    names = sorted(name for name in os.listdir(folder) if name.endswith(".xml"))
    if len(names) > MAX_REPORTS:
        raise ReportError(f"more than {MAX_REPORTS} report files")
    for name in names:
        data = _read(folder / name, left)
        left -= len(data)
        for test, status in parse(data):
            statuses[test] = max(status, statuses.get(test, "passed"), key=_ORDER.index)
    return statuses


def parse(data: bytes) -> list[tuple[str, str]]:
    """(id, status) of each testcase. Raises ReportError for what is not well-formed or declares entities."""
    tests: list[list[str]] = []
    inside = False

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        if tag == "testcase":
            tests.append([f"{attributes.get('classname', '')}::{attributes.get('name', '')}", "passed"])
            inside = True
        elif inside and (status := {"failure": "failed", "error": "error", "skipped": "skipped"}.get(tag)):
            tests[-1][1] = max(tests[-1][1], status, key=_ORDER.index)

    def end(tag: str) -> None:
        nonlocal inside
        inside = inside and tag != "testcase"

    def doctype(*_: object) -> None:
        raise ReportError("the report declares a document type, which no test runner does")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ReportError(f"the report is not XML ({error})") from error
    return [(test, status) for test, status in tests]


def _read(path: Path, most: int) -> bytes:
    """The file's bytes. A symlink would lead out of the sandbox, a pipe would block: neither is opened."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ReportError(f"{path.name} is not a regular file")
    if status.st_size > most:
        raise ReportError(f"the reports are larger than {MAX_REPORT_BYTES >> 20} MiB")
    return path.read_bytes()
