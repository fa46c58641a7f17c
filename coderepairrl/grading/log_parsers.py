"""What a runner's log says of each test, where it writes no JUnit XML: the parsers of the `swebench` package, by its
names.

The log is the work of untrusted code, and a parser's regular expressions may take for ever on it, so each runs in a
process of its
own with a deadline: `python -I log_parsers.py PARSER LOG` prints the statuses as JSON.
"""

import asyncio
import functools
import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

PARSE_S = 30.0
STATUSES = {"PASSED": "passed", "XFAIL": "xfailed", "SKIPPED": "skipped", "FAILED": "failed", "ERROR": "error"}


class ParserError(ValueError):
    """A parser breaks on a log; the message is one line."""


def registry() -> dict:
    """swebench's parsers by name, without the rest of its harness.

    swebench/harness/__init__.py imports the clients of Docker and Modal, of which a parser needs none; a bare package
    of the same
    name stands in while the parsers are imported. Not needed any more once they can be imported alone.
    """
    folder = Path(importlib.util.find_spec("swebench").submodule_search_locations[0], "harness")
    harness = types.ModuleType("swebench.harness")
    harness.__path__ = [str(folder)]
    had = sys.modules.get("swebench.harness")
    sys.modules["swebench.harness"] = had or harness
    try:
        return importlib.import_module("swebench.harness.log_parsers").PARSER_REGISTRY
    finally:
        if had is None:
            del sys.modules["swebench.harness"]


@functools.cache
def names() -> frozenset[str]:
    return frozenset(registry())


def parse(parser: str, log: str, task_id: str = "", version: str = "") -> dict[str, str]:
    """test id, as the parser names it -> passed | xfailed | skipped | failed | error. A few parsers ask the row which
    runner wrote the log.

    KeyError for an unknown parser; on a log, or a row, that it does not expect a parser may raise anything.
    """
    row = types.SimpleNamespace(instance_id=task_id, version=version)
    return {test: STATUSES[status] for test, status in registry()[parser](log, row).items() if status in STATUSES}


def problem(parser: str, task_id: str, version: str) -> str:
    """Why no log of this task could be read; empty when it can."""
    if parser not in names():
        return f"swebench has no parser {parser!r}"
    try:
        parse(parser, "", task_id, version)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"swebench's {parser} reads no log of {task_id}, version {version!r} ({type(error).__name__}: {error})"
    return ""


async def parse_file(parser: str, log: Path, task_id: str = "", version: str = "") -> dict[str, str] | None:
    """`parse` in a process of its own; None when it takes longer than PARSE_S, or is none of swebench's. Raises
    ParserError when it breaks."""
    if parser not in names():
        return None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        __file__,
        parser,
        str(log),
        task_id,
        version,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", "")},
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(), PARSE_S)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        *_, last = ["no traceback", *said.decode(errors="replace").strip().split("\n")]
        raise ParserError(f"{parser} breaks on the log ({last[:200]}, exit code {process.returncode})")
    return json.loads(out)


if __name__ == "__main__":
    print(json.dumps(parse(sys.argv[1], Path(sys.argv[2]).read_text(errors="replace"), *sys.argv[3:])))
