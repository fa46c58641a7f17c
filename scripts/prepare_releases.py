"""Makes a set of release pairs: of packages in coderepairrl/tasks/releases.yaml, pairs of neighbouring releases that
admission accepts.

    nice -n 19 python scripts/prepare_releases.py coderepairrl/tasks/release_pairs.jsonl --packages xmltodict=9
    voluptuous=6

NAME=N tries the newest N pairs. A pair is a candidate when the later release changes source and tests, and at most
MAX_CHANGED lines of
source. Its FAIL_TO_PASS are the tests of the later release that fail on the earlier one and pass on the earlier one
with the later one's
source; of the files that hold them, all that pass on both is PASS_TO_PASS. Then it is admitted as any task is: see
coderepairrl/curation/admission.py. Every decision is appended to OUT.journal; started again, the program continues from
there.
"""

import argparse
import asyncio
import functools
import hashlib
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from coderepairrl.config import contents
from coderepairrl.curation.admission import validate
from coderepairrl.curation.journal import Journal, add_arguments
from coderepairrl.curation.suite import Refused, Version, passing
from coderepairrl.diffs import split_diff
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.environments.cache import default_cache
from coderepairrl.environments.sources import Archive
from coderepairrl.errors import CodeRepairError, TaskError
from coderepairrl.files import write_jsonl
from coderepairrl.grading.grader import grade
from coderepairrl.processes import cause, logs
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.tasks.packages import FOLDER, build
from coderepairrl.tasks.releases import PairRow, Release, pack, pair_task, released
from coderepairrl.types import Task

MAX_CHANGED = 1000  # lines added and removed
MAX_FAILING = 200  # tests
MAX_SUITE_S = 120.0  # of the whole suite, so that making the set stays bearable
MAX_SELECTED_S = 30.0  # of one grading
SANDBOX = SandboxConfig()


def versions(name: str) -> list[str]:
    """Final releases on the index, newest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", name]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Available versions: (.*)", done.stdout)
    if not found:
        raise TaskError(f"{name}: pip finds no versions ({cause.of_text(done.stderr)}): check the name and the index")
    return [version for version in found[1].split(", ") if re.fullmatch(r"[\d.]+(\.post\d+)?", version)]


def obtain(name: str, version: str) -> tuple[Release, Path]:
    """The release, with the hash of what the index gave, and its unpacked folder. Raises Refused when there is no
    source distribution."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-binary",
            name,
            f"{name}=={version}",
            "-d",
            folder,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = [path for path in Path(folder).iterdir() if path.name.endswith((".tar.gz", ".zip", ".tar.bz2"))]
        if done.returncode or not archives:
            raise Refused("no source distribution")
        release = Release(version=version, sha256=hashlib.sha256(archives[0].read_bytes()).hexdigest())
        archive = Archive(name=name, version=version, sha256=release.sha256, keep=())
        return release, build(archive, default_cache(), released()[name].requirements, fetch=lambda *_: archives[0])


def admit(name: str, before: tuple[Release, Path], after: tuple[Release, Path]) -> PairRow:
    """Raises Refused."""
    package = released()[name]
    row = PairRow(
        task_id=f"{name}-{after[0].version}",
        package=name,
        before=before[0],
        after=after[0],
        test_selection=package.tests,
        fail_to_pass=(),
        pass_to_pass={},
        base_s=(),
        gold_s=(),
        python="",
    )
    task = pair_task(row, package, before[1], after[1], "train")
    changes = split_diff(task.oracle_patch)
    changed = sum(len(change.added) + len(change.removed) for change in changes)
    if not task.hidden_tests or not changed or changed > MAX_CHANGED:
        raise Refused(
            "no test changes"
            if not task.hidden_tests
            else f"more than {MAX_CHANGED} lines of source change"
            if changed
            else "no source changes"
        )
    with Version(task.environment, task.hidden_tests) as version:
        old = version.run(package.tests, MAX_SUITE_S)[0]
    with Version(replace(task.environment, base=str(after[1]))) as version:
        new = version.run(package.tests, MAX_SUITE_S)[0]
    once = {test for test, cases in new.items() if len(cases) == 1}
    failing = {test for test in passing(new) & once - passing(old) if not names_version(test)}
    if not 0 < len(failing) <= MAX_FAILING:
        raise Refused("no test fails before and passes after" if not failing else f"more than {MAX_FAILING} tests fail")
    files = sorted({file for test in failing if (file := file_of(test, after[1], package.tests))})
    if not files:
        raise Refused("the failing tests are in no file")
    tests = {test for test in passing(new) & once if file_of(test, after[1], package.tests) in files}
    row = row.model_copy(update={"test_selection": tuple(files)})
    row = asyncio.run(
        refine(row, replace(pair_task(row, package, before[1], after[1], "train"), fail_to_pass=tuple(sorted(tests))))
    )
    decision = asyncio.run(
        validate(pair_task(row, package, before[1], after[1], "train"), EnvironmentsConfig(), SANDBOX)
    )
    if decision.reason:
        raise Refused(decision.reason)
    return row.model_copy(update={"base_s": decision.base_s, "gold_s": decision.gold_s, "python": decision.python})


def names_version(test: str) -> bool:
    """Such a test may fail for the release's number alone."""
    return "version" in test.rpartition("::")[2].lower()


def file_of(test: str, root: Path, folders: tuple[str, ...]) -> str | None:
    """The test file of a JUnit id: the longest path that its class name starts with."""
    parts = test.partition("::")[0].split(".")
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length]) + ".py"
        if (root / path).is_file() and any(path == name or path.startswith(f"{name}/") for name in folders):
            return path
    return None


async def refine(row: PairRow, task: Task) -> PairRow:
    """The row with the tests that the judge itself sees fail without and pass with the repair. Raises Refused."""
    base, gold = [await grade(task, diff, SANDBOX) for diff in ("", task.oracle_patch)]
    if gold.evidence == "none" or gold.seconds > MAX_SELECTED_S:
        raise Refused(
            "the repaired tests give no report"
            if gold.evidence == "none"
            else f"its tests take more than {MAX_SELECTED_S:g} s"
        )
    repaired = [test for test, status in gold.fail_to_pass.items() if status == "passed"]
    to_pass = [test for test in repaired if base.fail_to_pass[test] != "passed" and not names_version(test)]
    to_keep = [test for test in repaired if base.fail_to_pass[test] == "passed"]
    if not to_pass or not to_keep:
        raise Refused("no test fails before and passes after" if not to_pass else "no test passes before and after")
    return row.model_copy(update={"fail_to_pass": tuple(to_pass), "pass_to_pass": pack(to_keep)})


def prepare(name: str, pairs: int, journal: Journal, bar: tqdm) -> None:
    found = versions(name)[: pairs + 1]
    get = functools.cache(lambda version: obtain(name, version))

    def decide() -> PairRow:
        try:
            return admit(name, get(before), get(after))
        except TaskError as error:
            raise Refused(f"the pair is wrong: {error}") from error

    for after, before in zip(found, found[1:]):
        decision = journal.decide(f"{name}:{before}:{after}", decide, package=name)
        tqdm.write(f"{decision['candidate']}: {decision.get('refused', 'admitted')}")
        bar.update()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, released(), 6, "of the newest pairs to try")
    arguments = parser.parse_args()
    logs.to_stderr()
    journal = Journal(arguments.out, {"packages": contents.named(str(FOLDER / "releases.yaml"))})
    with tqdm(total=sum(count for _, count in arguments.packages), desc="pairs", unit="pair") as bar:
        for name, count in arguments.packages:
            prepare(name, count, journal, bar)
    write_jsonl(arguments.out, journal.admitted(dict(arguments.packages)))


if __name__ == "__main__":
    try:
        main()
    except CodeRepairError as error:
        sys.exit(f"prepare_releases: {error}")
