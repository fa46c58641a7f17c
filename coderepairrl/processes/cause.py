"""Why a program ended, in one line: the first error of what failed first, not what others said when they lost it.

A log holds what several processes wrote: ranks, vLLM's workers, engine and API server, a container's runtime, a
launcher. All write into one file that they append to, so what stands first happened first. Most are kept apart by what
the libraries put before each line: torch "[rank1]:", vLLM "(EngineCore pid=7) ERROR ...". In this order, the first that
there is:
    1. our programs' last line, `error: ...` (program.py), which each rank writes before it ends
    2. the traceback with which a process ended. One who at last only said that another failed (an echo) is not asked
    3. the signal that ended a rank, as torchrun saw it
    4. a traceback that its process outlived (in a thread)
    5. what a tool says: usage errors, `FATAL:`, a rank's exit code
    6. an echo, where nobody said more
torch's record() would tell of the ranks alone, in whole seconds, and of nothing that ends by sys.exit; the order of a
log is exact.
"""

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.lines import one_line, python_lines

LIMIT = 500  # characters of a cause
TAIL = 8 << 20  # bytes of a log that are read
GROUPS = 10  # of exceptions, one in another: Python prints no more
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
SOURCE = re.compile(
    r"\[((?:rank|default)\d+)\]: ?"
    r"|\(([\w.-]+ pid=\d+)\) ?(?:(DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^]]*\] ?)?"
)
MILD = re.compile(
    r"^\W*(DEBUG|INFO|WARN|WARNING|[Ww]arning|[Ii]nfo)\b"
    r"|^.{,80}\d\d:\d\d:\d\d\S*\W.{,60}?\b(DEBUG|INFO|WARN|WARNING)\b"
    r"|^.*:\d+: \w*Warning: "
)
HEADER = re.compile(r"(\s*)(?:[+|] )?(Exception Group )?Traceback \(most recent call last\):$")
LINK = ("The above exception was the direct cause of", "During handling of the above exception, another")
RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?::|$)")
OUTLIVED = re.compile(r"^Exception (ignored in|in thread)|Logging error ---$|exception was never retrieved")
# what doesn't go on with an exception's text
RECORD = re.compile(
    r"^(\[?[EWIF]\d{4} |\[?\d{4}-\d\d-\d\d|error: |Process |Exception |usage: |\S+:\d+: \w*Warning|step \d|-+$|"
    + "|".join(LINK)
    + ")"
)
# what a process says of another one that failed, in the words of torch, gloo, NCCL, vLLM, Slurm, pip, uv and setuptools
ECHO = re.compile(
    r"connection closed by peer|connection reset by peer|broken pipe|connection refused|remote worker|remote process"
    r"|socket timeout|timed out waiting \d+ms"
    r"|DistNetworkError|DistStoreError|store->|collective operation timeout|ncclRemoteError|ncclSystemError"
    r"|see (root cause|stack trace|the root cause)|EngineDeadError|died unexpectedly|background process"
    r"|ChildFailedError|Exited with exit code|Job step aborted"
    r"|subprocess-exited-with-error|metadata-generation-failed|command .* failed with exit|Failed to build"
    r"|build backend returned an error|Call to `.*` failed \(exit",
    re.IGNORECASE,
)
FAILED = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"  # torchrun's last words begin so
RANK = re.compile(r"^\s+rank\s+: (\d+).*\n\s+exitcode\s+: (-?\d+)", re.MULTILINE)
# of these the last one counts where nothing else is known
NAMED = re.compile(
    r"(?i)\b(error|fatal|failed|cannot|no matching|not found|because|denied|refused)\b|\w(Error|Exception)\b"
)
OUR = re.compile(r"error: ")
CRASH = re.compile(r"^(Fatal Python error: .*|\s+what\(\): .*)$", re.MULTILINE)
TOOL = (
    re.compile(r"FATAL: "),
    CRASH,
    re.compile(r"[\w./ :-]+: (fatal )?error: "),
    re.compile(r"ERROR ?: "),
    re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception): "),
    re.compile(r" +error: "),  # of a build backend, as uv and pip quote it
)


@dataclass(frozen=True)
class LogLine:
    """Of a log, without colours and what stands before it. `source`: "rank1", "EngineCore pid=7", or ""."""

    source: str
    prefix: str  # the same in all lines of one record
    text: str
    mild: bool  # says itself that it is no error


@dataclass(frozen=True)
class LoggedTraceback:
    """One traceback, with those that it came from. `at`: its place in the log."""

    source: str
    at: int
    raised: list[str]  # the first exception to the last: "ValueError: x"
    outlived: bool  # the process went on

    @property
    def said(self) -> str:
        return _then(self.raised[0], self.raised[-1])


def of_exception(error: BaseException) -> str:
    """The exception that all began with, and the last one, where that is another."""
    error = first_of_group(error)
    first = error
    while isinstance(
        former := first.__cause__ or (None if first.__suppress_context__ else first.__context__), Exception
    ):
        first = first_of_group(former)
    described = lambda e: f"{type(e).__name__}: {e}" if str(e) else type(e).__name__  # noqa: E731
    return _then(described(first), described(error))


def first_of_group(error: BaseException) -> BaseException:
    """Of several errors at once; else the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def of_log(log: Path, since: int = 0, code: int | None = None) -> str:
    """Of a program that wrote into `log` from byte `since` on, and ended with exit code `code`."""
    with log.open("rb") if log.exists() else open("/dev/null", "rb") as file:
        file.seek(max(since, file.seek(0, 2) - TAIL))
        text = file.read().decode(errors="replace")
    number = -code if code and code < 0 else code - 128 if code and code > 128 else 0
    if number in set(signal.Signals):  # it said so itself, or a shell or a container's runtime did: 128 + n
        crash = CRASH.findall(text)
        return by_signal(number) + (f": {_one_line(crash[-1])}" if crash else "")
    return of_text(text, guess=False) or "no error in its log"


def of_text(text: str, guess: bool = True) -> str:
    """Of what was printed by something that failed. `guess`: where no line tells, the last that sounds like an error,
    or the last of all; else ""."""
    before, last = _last_launch(ANSI.sub("", text))
    lines = list(_lines(before))
    table = [(int(rank), int(code)) for rank, code in RANK.findall(last)]
    ours = [line.text for line in lines if OUR.match(line.text)]
    if not table and not any(line.source.startswith("rank") for line in lines):
        ours.reverse()  # of one process its last word counts; of several that of the first
    whole = any(not ECHO.search(line) for line in ours)
    tracebacks = [] if whole else sorted(_tracebacks(lines), key=lambda each: each.at)
    signals = [f"rank {rank}: {by_signal(-code)}" for rank, code in table if code < 0 and code != -signal.SIGTERM]
    outlived = [each.said for each in tracebacks if each.outlived]
    codes = [
        f"rank {rank} ended with exit code {code} and said nothing" if code > 0 else f"rank {rank}: {by_signal(-code)}"
        for rank, code in table[:-2:-1]
    ]
    tools = [line.text for form in TOOL for line in lines if form.match(line.text) and not line.mild]
    echoes = [*ours, *(each.said for each in tracebacks)]
    told = [*ours, *_ends(tracebacks), *signals, *outlived, *tools, *codes]
    found = next((line for line in told if not ECHO.search(line)), None) or next(iter([*echoes, *tools]), "")
    return _one_line(re.sub(r"^\s*error: ", "", found)) or (_guess(lines) if guess else "")


def tracebacks(text: str) -> list[LoggedTraceback]:
    """All that were printed, in order."""
    return sorted(_tracebacks(list(_lines(text))), key=lambda each: each.at)


def is_echo(cause: str) -> bool:
    """Whether it only says that another process failed."""
    return bool(ECHO.search(cause))


def by_signal(number: int) -> str:
    """What a signal that ended a process says of why."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"ended by {name}" + (
        ", from outside: where nobody sent it, the kernel did, for want of memory" if number == signal.SIGKILL else ""
    )


def _one_line(text: str) -> str:
    return one_line(text)[:LIMIT]


def _then(first: str, last: str) -> str:
    first, last = _one_line(first)[: LIMIT // 2], _one_line(last)
    if not last.startswith(first):
        return f"{first}; then {last}"
    return first if len(first) < LIMIT // 2 else last


def _last_launch(text: str) -> tuple[str, str]:
    """(what was said until torchrun's last words or the end, those words). Of several launches the last counts."""
    *_, before, last = ["", *text.split(FAILED)] if FAILED in text else ["", text, ""]
    later = last.rpartition("=====\n")[2]
    return (before, last) if not OUR.search(later) else (later, "")


def _lines(text: str) -> Iterator[LogLine]:
    for line in python_lines(text):
        line = line.rstrip("\r\n")[: 2 * LIMIT]
        match = SOURCE.match(line)
        rest = line[match.end() :] if match else line
        level = (match[3] or "") if match else ""
        yield LogLine(
            (match[1] or match[2]) if match else "",
            match[0] if match else "",
            rest,
            level in ("DEBUG", "INFO", "WARNING") or not level and bool(MILD.search(rest[:200])),
        )


def _tracebacks(lines: list[LogLine]) -> Iterator[LoggedTraceback]:
    """Each, with what it was raised from, whoever wrote in between."""
    records: dict[str, list[tuple[int, LogLine]]] = {}
    for at, line in enumerate(lines):
        records.setdefault(line.prefix, []).append((at, line))
    for own in records.values():
        texts = [line.text for _, line in own]
        i = 0
        while i < len(own):
            if not HEADER.match(texts[i]):
                i += 1
                continue
            began, before = i, texts[i - 1] if i else ""
            i, raised = _chain(texts, i)
            outlived = bool(
                OUTLIVED.search(before)
                or i > 1
                and any(OUTLIVED.search(text) for text in texts[max(0, began - 2) : began])
            )
            mild = own[began][1].mild or began and MILD.search(before)
            if raised and not mild:
                yield LoggedTraceback(own[0][1].source, own[began][0], raised, outlived)


class _Dedented(Sequence[str]):
    """The lines without the blanks that stand before `deep`: of those that are asked for, since a log may be long and
    hold many tracebacks."""

    def __init__(self, texts: Sequence[str], deep: int):
        self.texts, self.deep = texts, deep

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, at: int | slice) -> str | list[str]:
        return (
            [self._dedented(text) for text in self.texts[at]]
            if isinstance(at, slice)
            else self._dedented(self.texts[at])
        )

    def _dedented(self, text: str) -> str:
        return text if text[: self.deep].strip() else text[self.deep :]


def _chain(texts: Sequence[str], i: int, depth: int = 0) -> tuple[int, list[str]]:
    """(where it is over, the exceptions of the traceback whose header stands at i and of those linked to it)."""
    raised: list[str] = []
    deep = len(HEADER.match(texts[i])[1])  # inside another program's output
    texts = _Dedented(texts, deep) if deep and not HEADER.match(texts[i])[2] else texts
    while i < len(texts) and (header := HEADER.match(texts[i])):
        if header[2]:
            return _group(texts, i, depth)
        i += 1
        while i < len(texts) and not HEADER.match(texts[i]) and (texts[i][:1] in " \t" or not RAISED.match(texts[i])):
            i += 1
        if i == len(texts) or HEADER.match(texts[i]):
            continue  # two processes wrote over each other
        i, said = _message(texts, i)
        raised.append(said)
        over = next((k for k in range(i, min(i + 4, len(texts))) if texts[k].startswith(LINK)), None)
        if over is None:
            break
        i = next((k for k in range(over, min(over + 4, len(texts))) if HEADER.match(texts[k])), len(texts))
    return i, raised


def _message(texts: Sequence[str], i: int) -> tuple[int, str]:
    """An exception's line, and the further lines of its text."""
    end = i + 1
    while (
        end < min(i + 6, len(texts))
        and texts[end].strip()
        and not HEADER.match(texts[end])
        and not RECORD.match(texts[end])
    ):
        end += 1
    return end, " ".join(texts[i:end])


def _group(texts: Sequence[str], i: int, depth: int) -> tuple[int, list[str]]:
    """The exceptions inside an exception group, whose header stands at i; their lines begin with bars."""
    inside = []
    while not inside or i < len(texts) and re.match(r" *[+|]", texts[i]):
        inside.append(re.sub(r"^ *[+|] ?", "", re.sub(r"^( *[|])+", "|", texts[i])))
        i += 1
    starts = [k for k, text in enumerate(inside) if HEADER.match(text)][1:]
    return i, [said for k in starts[:1] for said in _chain(inside, k, depth + 1)[1]] if depth < GROUPS else []


def _ends(tracebacks: list[LoggedTraceback]) -> list[str]:
    """With what each process ended, in the order of time; one that ended with an echo is asked only where all did."""
    last = {each.source: each for each in tracebacks if not each.outlived}
    first_hand = [each for each in last.values() if not ECHO.search(each.raised[0])]
    others = [each for each in tracebacks[::-1] if not each.outlived]
    return [each.said for each in [*sorted(first_hand, key=lambda each: each.at), *others]]


def _guess(lines: list[LogLine]) -> str:
    texts = [
        line.text for line in lines if line.text.strip() and "A complete log of this run" not in line.text
    ]  # npm's last words
    named = [
        line.text
        for line in lines
        if NAMED.search(line.text) and not line.mild and "A complete log of this run" not in line.text
    ]
    return _one_line((named or texts or [""])[-1])
