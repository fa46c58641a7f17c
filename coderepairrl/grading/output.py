"""What a test command printed: the first error in it, its last lines, and all of it on request.

    first_error(text, exit_code)      one line, for the message of a verdict
    tail(text)                        the last lines as a terminal would show them, for people and for JSON
    Outputs(folder, most)             files of whole outputs, below a run's folder

Any of it may hold what hidden tests say: it goes into verdicts, results and files, and into no sandbox and no prompt.
"""

import hashlib
import itertools
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.files import write_text
from coderepairrl.lines import one_line
from coderepairrl.processes import cause
from coderepairrl.sandboxes import CommandResult

ERROR_CHARACTERS = 200  # of an error's line
TAIL_CHARACTERS = 4000
COMMAND_CHARACTERS = 1000  # that a file shows of the command
LONGEST_LINE = 2000  # of which a form is looked for
# characters in which the first error is looked for, half of them at the end: a run may print millions of lines
SEARCHED = 64 << 10

# colours and moves of the cursor; titles and links; everything else that begins with an escape
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
BREAK = re.compile(r"[\x0b\x0c\x85\u2028\u2029]")  # where other programs would end a line
SURROGATE = re.compile(r"[\ud800-\udfff]")
KILLED = re.compile(r"\[killed: (.*)\]$")  # sandboxes/process.py says why, at the end
PREFIX = re.compile(r"INTERNALERROR> ?|\[ERROR\] +|npm (?:ERR!|error) +")  # after which the line itself begins

RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Failed|NotFound)\b(?:: |$)")
ERROR = (  # of a tool, a runner or a shell, in the words that each puts at the beginning of a line
    re.compile(r"E {1,8}(?=(?:[A-Za-z_]\w*\.)*(?:[A-Za-z_]\w*: |\w*(?:Error|Exception)$)|fixture '.*' not found)"),
    re.compile(r"(?i)(?=(?:php )?(?:parse |fatal )?error(?:\[\w+\])?: )"),
    re.compile(r"(?i)(?=fatal: |panic: |fatal python error: |segmentation fault\b|killed$|aborted\b|bus error\b)"),
    re.compile(r"(?=terminate called )"),
    re.compile(
        r"(?=[^\s:][^:]{0,200}:(?: line)?(?: ?\d+:)?(?: ?\d+:)? (?:fatal |syntax )?error(?: \w+)?: )"
    ),  # prog: error: x
    re.compile(
        r"(?=\S+\.(?:go|rs|c|cc|cpp|h|java|kt|ts|cs):(?:\[?\d+[,:]?\d*\]?:? ?)(?! in ))"
    ),  # where a compiler stops
    re.compile(
        r"(?i)(?=\S.{0,200}: (?:(?:command )?not found|no such file or directory|permission denied|cannot execute)\b)"
    ),
    re.compile(
        r"(?i)(?=\S.{0,200}: (?:no module named|can't open file|cannot open|failed to run command|unrecognized|"
        r"invalid option|unknown option|no rule to make))"
    ),
    re.compile(
        r"(?=make(?:\[\d+\])?: \*\*\* |go: (?!downloading |finding |extracting )|no Go files |Missing script: )"
    ),
    re.compile(r"(?i)(?=.{0,200}\bcannot find (?:module|symbol|package|main module|value)\b)"),
)
# What only announces an error, repeats a usage, or says that something else failed.
ANNOUNCED = re.compile(
    r"ERROR: usage: |usage: "
    r"|ERROR: \S+ \([\w.<>]+\)"  # the header of unittest
    r"|ImportError: Failed to import test module"
    r"|(?:code|errno|syscall|path|command|signal|cwd) |A complete log|Test failed\.|Lifecycle script"  # npm
    r"|COMPILATION ERROR|BUILD FAILURE|To see the full stack|Re-run Maven|For more information|(?:-> )?\[Help"  # Maven
    r"|Tests run: |Failed to execute goal|This is probably not a problem"
    r"|ERROR: InvocationError|make(?:\[\d+\])?: \*\*\* .* Error \d+"
)


def plain(text: str) -> str:
    """Without colours, control characters and halves of characters; of a progress bar what it said at last."""
    text = ESCAPE.sub("", text).replace("\t", "    ")
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return SURROGATE.sub("\ufffd", CONTROL.sub("", BREAK.sub(" ", "\n".join(lines))))


def tail(text: str, most: int = TAIL_CHARACTERS) -> str:
    """The last `most` characters, from the beginning of a line on unless that is far away; what is cut is counted."""
    shown = plain(text).strip("\n")
    if len(shown) <= most:
        return shown
    start = len(shown) - most
    line = shown.find("\n", start - 1) + 1
    start = line if 0 < line < start + most // 2 else start
    return f"[... {start} characters cut ...]\n{shown[start:]}"


def first_error(text: str, exit_code: int = 1) -> str:
    """In one line of at most ERROR_CHARACTERS: why the sandbox ended the command, the first line that is an error, the
    signal
    that ended it, or else what sounds like one; "no output" where there is none. Of a long text its two ends are
    read."""
    text = text if len(text) <= SEARCHED else f"{text[: SEARCHED // 2]}\n{text[-SEARCHED // 2 :]}"
    lines = plain(text).split("\n")
    killed = [match[1] for match in map(KILLED.match, lines[-2:]) if match]
    candidates = (
        *killed,
        *itertools.islice(_errors(lines), 1),
        _signal(exit_code),
        _sounds_like_one(lines),
        "no output",
    )
    return next(filter(None, map(one_line, candidates)))[:ERROR_CHARACTERS]


def _errors(lines: list[str]) -> Iterator[str]:
    lines = [line[:LONGEST_LINE] for line in lines]
    said = [PREFIX.sub("", line, count=1) if PREFIX.match(line) else line for line in lines]
    raised = {found.at: found.raised[0] for found in cause.tracebacks("\n".join(said)) if not found.outlived}
    for at, (line, text) in enumerate(zip(lines, said, strict=True)):
        if at in raised:
            yield raised[at]
        if cause.MILD.search(line[:200]) or ANNOUNCED.match(text):
            continue
        form = next((match for form in ERROR if (match := form.match(text))), None)
        if form:
            yield text[form.end() :]
        elif RAISED.match(text) or text is not line and re.search(r"\w", text) and not line.startswith("INTERNALERROR"):
            yield text


def _signal(exit_code: int) -> str:
    """What ended a command that a shell says 128 + n of."""
    number = exit_code - 128
    return cause.by_signal(number) if number in set(signal.Signals) else ""


def _sounds_like_one(lines: list[str]) -> str:
    def fits(line: str) -> bool:
        return bool(cause.NAMED.search(line)) and not cause.MILD.search(line[:200]) and not ANNOUNCED.match(line)

    said = [line for line in lines if line.strip()]
    return next((line for line in said if fits(line[:LONGEST_LINE])), said[-1] if said else "")


@dataclass(frozen=True)
class Outputs:
    """A file for each judged diff of a task, and for the oracle's patch: of runs that were repeated the last.

    `most`: bytes of an output that are kept, half of them from its end where it is longer.
    """

    folder: Path
    most: int

    def write(self, task_id: str, run: str, argv: list[str], result: CommandResult, output: str) -> Path:
        """Bytes that are no UTF-8 are U+FFFD in it. Raises SandboxError."""
        name = re.sub(r"^\.|^$|[^\w.+-]", "_", task_id, flags=re.ASCII)[:100]
        if name != task_id:  # so that no two are one
            name += f".{hashlib.sha256(task_id.encode(errors='surrogatepass')).hexdigest()[:8]}"
        path = self.folder / name / f"{run}.log"
        command = shlex.join(argv)
        command = command if len(command) <= COMMAND_CHARACTERS else f"{command[:COMMAND_CHARACTERS]} ..."
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, f"[exit code {result.exit_code} after {result.seconds:.1f} s: {command}]\n{output}")
        except OSError as error:
            raise SandboxError(
                f"the output of the tests cannot be kept ({error}): free some space, or keep none "
                "(rollout.keep_test_output_mib)"
            ) from error
        return path
