"""Reading JUnit XML that untrusted code may have written: bounded, no symlinks, no entities, the worst status wins."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

MAX_REPORT_BYTES = 32 << 20  # of all reports together
MAX_REPORTS = 1000
ORDER = ("passed", "xfailed", "skipped", "failed", "error")  # better to worse: a forged duplicate cannot hide a failure
_STATUS = {"failure": "failed", "error": "error", "skipped": "skipped"}


class ReportError(ValueError):
    """The report is not one: the message says why, for Verdict.message. `forged`: no test runner writes this, not even
    one that was killed.

    The message may name a file, whose name is the code's under test: bytes that are no text, line ends and a terminal's
    commands are written as escapes, so that whoever stores or shows the verdict can."""

    def __init__(self, message: str, forged: bool = False):
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in message))
        self.forged = forged


def read_reports(folder: Path) -> dict[str, str]:
    """id "classname::name" -> passed | xfailed | skipped | failed | error, over all *.xml of the folder; empty when
    there are none."""
    statuses: dict[str, str] = {}
    left = MAX_REPORT_BYTES
    names = sorted(name for name in os.listdir(folder) if name.endswith(".xml"))
    if len(names) > MAX_REPORTS:
        raise ReportError(f"more than {MAX_REPORTS} report files", forged=True)
    for name in names:
        data = read_regular(folder / name, left)
        left -= len(data)
        for test, status in parse(data):
            statuses[test] = max(status, statuses.get(test, "passed"), key=ORDER.index)
    return statuses


def parse(data: bytes) -> list[tuple[str, str]]:
    """(id, status) of each testcase. Raises ReportError for what is not well-formed or declares entities."""
    return [(case.test, case.status) for case in cases(data)]


@dataclass
class Case:
    """One test of a report."""

    test: str  # "classname::name"
    time: str  # as the report writes it
    status: str = "passed"  # passed | xfailed | skipped | failed | error
    pieces: list[str] = field(default_factory=list)  # of `detail`

    @property
    def detail(self) -> str:
        """The text of its first failure, error or skip: of pytest, the short traceback."""
        return "".join(self.pieces)

    @property
    def seconds(self) -> float:
        """Of a trusted report: in another one any text may stand there, which raises ValueError."""
        return float(self.time)


def cases(data: bytes) -> list[Case]:
    """All of a report, in its order. Raises ReportError for what is not well-formed or declares entities."""
    found: list[Case] = []
    inside = telling = False

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal inside, telling
        if tag == "testcase":
            test = f"{attributes.get('classname', '')}::{attributes.get('name', '')}"
            found.append(Case(test, attributes.get("time", "0")))
            inside, telling = True, False
        elif inside and (status := _STATUS.get(tag)):
            # an expected failure is a skip of its own kind; old releases of pytest say so in the message only
            if tag == "skipped" and (
                attributes.get("type") == "pytest.xfail"
                or attributes.get("message", "").startswith("expected test failure")
            ):
                status = "xfailed"
            telling = found[-1].status == "passed"
            found[-1].status = max(found[-1].status, status, key=ORDER.index)

    def text(piece: str) -> None:
        if telling:
            found[-1].pieces.append(piece)

    def end(tag: str) -> None:
        nonlocal inside, telling
        inside = inside and tag != "testcase"
        telling = telling and tag not in _STATUS

    def doctype(*_: object) -> None:
        raise ReportError("the report declares a document type, which no test runner does", forged=True)

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ReportError(f"the report is not XML ({error})") from error
    return found


def read_regular(path: Path, most: int) -> bytes:
    """The file's bytes. A symlink would lead out of the sandbox, a pipe would block: neither is opened."""
    with _opened(path) as (file, size):
        if size > most:
            raise ReportError(f"the reports are larger than {MAX_REPORT_BYTES >> 20} MiB")
        return file.read(most)


def read_ends(path: Path, most: int) -> bytes:
    """The same of a file of any size: all of it, or its head and tail, `most` bytes of them together."""
    with _opened(path) as (file, size):
        if size <= most:
            return file.read(most)
        head = file.read(most // 2)
        file.seek(size - most // 2)
        return head + f"\n[... {size - 2 * (most // 2)} bytes cut ...]\n".encode() + file.read(most // 2)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(the file, its size in bytes)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ReportError(f"{path.name} is not a regular file ({error.strerror})", forged=True) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ReportError(f"{path.name} is not a regular file", forged=True)
        with open(descriptor, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(descriptor)
