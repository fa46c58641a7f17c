"""Many bugs of a package, each with a real failing test and a statement written from it, in a fraction of the time of
admission: what demonstrations are made of. See inside/failing_tests.py for how.

    found = {path: mutations_of("toolz", path) for path in files_of("toolz")}
    for bug in find_bugs("toolz", draw("toolz", found, 400, seed=0, vain=2)): ...
"""

import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.config import Config
from coderepairrl.curation import statement
from coderepairrl.curation.mutation import mutations
from coderepairrl.curation.source_edits import Mutation, SourceEdit
from coderepairrl.errors import TaskError
from coderepairrl.files import read_jsonl
from coderepairrl.sandboxes import SandboxConfig, plain_terminal, start_sandbox
from coderepairrl.tasks.packages import environment, packages, read_source
from coderepairrl.types import Environment, Task

PROGRAM = Path(__file__).parent / "inside" / "failing_tests.py"
MOST_FAILING = 13  # tests, as inside/failing_tests.py has it
SECONDS = 2  # of a bug's tests
LIMIT_S = 900  # of a chunk of bugs
MAX_STATEMENT = 700  # characters


class FailingBug(Config):
    """A bug that tests show. Edits are (start, end, replacement) of the original file at `path`."""

    package: str
    lock: str  # sha256 of its source distribution
    kind: str
    function: str  # dotted name, within the file
    path: str
    edits: tuple[SourceEdit, ...]
    problem_statement: str
    test_file: str  # that holds the test which the statement is about
    test: str  # its name
    failing: int  # tests
    vain: tuple[
        tuple[SourceEdit, ...], ...
    ] = ()  # edits of the original, beside the bug's, with which that test fails as before


@dataclass(frozen=True)
class Candidate:
    path: str
    mutation: Mutation
    vain: tuple[list[SourceEdit], ...]  # edits of which it is to be seen whether they mend nothing


def _base(place: Environment) -> Path:
    """The package's files: its environment is built."""
    assert place.base is not None, place.name
    return Path(place.base)


def files_of(name: str) -> list[str]:
    """Those that may get a bug."""
    base = _base(environment(name))
    return sorted({p.relative_to(base).as_posix() for pattern in packages()[name].mutate for p in base.glob(pattern)})


def mutations_of(name: str, path: str) -> list[Mutation]:
    return list(mutations(read_source(_base(environment(name)) / path), path))


def draw(name: str, found: dict[str, list[Mutation]], count: int, seed: int, vain: int) -> list[Candidate]:
    """So many of what `mutations_of` found in the package's files, in a seeded order."""
    rng = random.Random(f"{name}-{seed}")
    own: dict[tuple[str, str], list[Mutation]] = {}
    for path, every in found.items():
        for mutation in every:
            own.setdefault((path, mutation.function), []).append(mutation)
    chosen = [(path, mutation) for path, every in found.items() for mutation in every]
    rng.shuffle(chosen)
    out = []
    for path, mutation in chosen[:count]:
        others = [m for m in own[path, mutation.function] if apart(m, mutation)]
        tries = tuple(m.edits for m in rng.sample(others, min(vain, len(others))))
        out.append(Candidate(path, mutation, tries))
    return out


def find_bugs(name: str, chosen: Sequence[Candidate]) -> list[FailingBug]:
    """Those that tests show and that a statement can be written of. Raises TaskError."""
    place = environment(name)
    jobs = [
        {"id": number, "path": one.path, "edits": one.mutation.edits, "vain": one.vain}
        for number, one in enumerate(chosen)
    ]
    rows = asyncio.run(_run(name, place, jobs))
    names = statement.public_names(_base(place), packages()[name].mutate)
    found = [_bug(name, place, names, chosen[row["id"]], row) for row in rows]
    return [bug for bug in found if bug]


def name_of(test: str) -> str:
    """The function's, of a pytest id: what is in brackets may hold anything."""
    return test.partition("[")[0].rpartition("::")[2]


def apart(one: Mutation, other: Mutation) -> bool:
    """Whether neither edit touches the other's lines' characters."""
    return one.end < other.start or other.end < one.start


async def _run(name: str, place: Environment, jobs: list[dict]) -> list[dict]:
    package = packages()[name]
    with tempfile.TemporaryDirectory(prefix="failing-") as scratch:
        task = Task("bugs", "", place, {}, {}, (), (), (), "")
        async with start_sandbox(SandboxConfig(scratch=scratch), task) as sandbox:
            folder, inside = sandbox.share("job")
            options = ["-q", "-p", "no:cacheprovider", "--rootdir=.", "--tb=short"]
            options += ["-o", f"pythonpath={' '.join(package.python_path)}", *package.tests]
            (folder / "job.json").write_text(json.dumps({"pytest": options, "bugs": jobs, "seconds": SECONDS}))
            (folder / "program.py").write_text(PROGRAM.read_text())
            argv = [place.python, "-P", *(f"{inside}/{file}" for file in ("program.py", "job.json", "out.jsonl"))]
            result = await sandbox.run(argv, timeout_s=LIMIT_S, variables={**plain_terminal(place)})
            if not (folder / "out.jsonl").is_file():
                raise TaskError(
                    f"{name}: its suite can't be run in one process: {result.output[-300:]!r}: leave it out"
                )
            return read_jsonl(folder / "out.jsonl")


def _bug(name: str, place: Environment, names: set[str], candidate: Candidate, row: dict) -> FailingBug | None:
    """None where no statement can be shown, or too many tests fail."""
    path, mutation = candidate.path, candidate.mutation
    failing = row["failing"]
    if not 0 < len(failing) < MOST_FAILING or row["over"]:
        return None
    original = read_source(_base(place) / path)
    texts = []
    for test, detail in row["details"].items():
        text = statement.describe(
            name, packages()[name].tests, _base(place), f"::{name_of(test)}", detail, names, len(failing)
        )
        if text and len(text) < MAX_STATEMENT and not statement.gives_away(text, original, mutation, path):
            texts.append((not text.startswith("`"), test, text))
    if not texts:
        return None
    _, test, text = min(texts, key=lambda found: found[0])
    kept = [edits for edits, still in zip(candidate.vain, row.get("vain", ()), strict=False) if still]
    return FailingBug(
        package=name,
        lock=packages()[name].sha256,
        kind=mutation.kind,
        function=mutation.function,
        path=path,
        edits=tuple(mutation.edits),
        problem_statement=text,
        test_file=test.split("::")[0],
        test=name_of(test),
        failing=len(failing),
        vain=tuple(tuple(edits) for edits in kept),
    )
