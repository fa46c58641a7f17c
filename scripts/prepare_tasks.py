"""Builds the environments of a task set and admits the tasks that can be solved and always say the same; see
docs/tasks.md.

    python scripts/prepare_tasks.py configs/tasks/swe_gym.yaml [a.b=c ...]
    python scripts/prepare_tasks.py TRAIN --decontaminate EVAL [--before 2023-01-01] [--out CLEAN.jsonl]

The first writes OUT.jsonl (the admitted tasks, which `tasks: {name: jsonl}` reads) and OUT.admission.jsonl (a row a
task: times, lock,
Python version, or why it was refused). The same command goes on where it was interrupted; OUT.inputs.json holds the
settings
that decided, others need another `out:`. Rows that cannot be read and tasks that the machine left undecided are named
and counted, the rest
goes on, and the exit code is 1.
The second compares two sets (JSONL files, or YAML files as above): by repository, commit, patch and date. It exits with
2 when a
training task has an evaluation task's commit or patch; --out writes the training tasks that have neither, --before
those older than a day.
"""

import asyncio
import json
import os
import re
import statistics
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import Field, PositiveInt

from coderepairrl import sandboxes
from coderepairrl.config import Config, contents, load
from coderepairrl.curation.admission import Decision, validate
from coderepairrl.curation.decontaminate import KINDS, contamination, split_by_date
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError, SandboxError
from coderepairrl.files import drop_torn_line, read_jsonl, write_json
from coderepairrl.run import inputs
from coderepairrl.run.intervals import NOTHING
from coderepairrl.run.program import program
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.tasks import TasksConfig, jsonl, load_tasks
from coderepairrl.tasks.jsonl import JsonlConfig
from coderepairrl.types import Task

CONTAMINATED = 2  # exit code


class PrepareConfig(Config):
    tasks: TasksConfig  # what is to be admitted
    out: str  # path of the admitted file, .jsonl
    environments: EnvironmentsConfig = EnvironmentsConfig()
    sandbox: SandboxConfig = SandboxConfig()
    # tasks at once; left out, half as many as there are cores: two that share cores slow each other's tests
    parallel: PositiveInt = Field(default_factory=lambda: max(1, (os.cpu_count() or 2) // 2))


# ---- preparing ------------------------------------------------------------------------------------------------------


def record_of(out: Path) -> Path:
    return out.with_suffix(".admission.jsonl")


def read_record(path: Path) -> dict[str, Decision]:
    """Task id -> its decision."""
    drop_torn_line(path)
    rows = read_jsonl(path) if path.exists() else []
    return {
        row["task_id"]: Decision(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        )
        for row in rows
    }


def tasks_of(config: TasksConfig, refused: list[str] | None = None) -> list[Task]:
    """Not built yet, of both splits. `refused`: see load_tasks."""
    if isinstance(config, JsonlConfig):
        return [task for path in (config.train, config.heldout) if path for task in jsonl.usable(Path(path), refused)]
    return [task for split in load_tasks(config, refused).values() for task in split]


async def prepare(config: PrepareConfig, tasks: list[Task], record: Path, done: dict[str, Decision]) -> int:
    """Decides what is not decided yet; returns how many the machine's trouble left undecided."""
    places, waiting, undecided = asyncio.Semaphore(config.parallel), len(tasks), 0

    async def one(task: Task) -> None:
        nonlocal waiting, undecided
        async with places:
            try:
                decision = await validate(task, config.environments, config.sandbox)
            except SandboxError as error:
                decision, undecided = None, undecided + 1
                print(f"{task.task_id}: undecided, {error}", flush=True)
        waiting -= 1
        if decision:
            done[task.task_id] = decision
            with record.open("a") as file:
                file.write(json.dumps(asdict(decision)) + "\n")
            decided = f"refused, {decision.reason}" if decision.reason else f"admitted ({max(decision.gold_s):.1f} s)"
            said = f"{decided}: {decision.detail}"[:300].rstrip(": ")
            print(f"{task.task_id}: {said} [{waiting} left]", flush=True)

    await asyncio.gather(*map(one, tasks))
    return undecided


def admitted(task: Task, decision: Decision) -> Task:
    """With the lock that was admitted (another build of the same row is refused where the file is read), and with the
    tests that were measured."""
    place = replace(task.environment, lock=decision.lock)
    if not decision.fail_to_pass:
        return replace(task, environment=place)
    return replace(task, environment=place, fail_to_pass=decision.fail_to_pass, pass_to_pass=decision.pass_to_pass)


def table(decisions: list[Decision]) -> str:
    """A line a repository, then a line a reason."""
    repos = sorted({decision.repo for decision in decisions})
    width = max(map(len, [*repos, "repository"]))
    lines = [f"{'repository':{width}}  tasks  admitted  build s  gold s"]
    for repo in repos:
        rows = [decision for decision in decisions if decision.repo == repo]
        good = [decision for decision in rows if decision.admitted]
        middle = [
            f"{statistics.median(values):.1f}" if values else NOTHING
            for values in ([d.build_s for d in good], [s for d in good for s in d.gold_s])
        ]
        lines.append(f"{repo:{width}}  {len(rows):5d}  {len(good):8d}  {middle[0]:>7}  {middle[1]:>6}")
    reasons = Counter(decision.reason for decision in decisions if decision.reason)
    return "\n".join([*lines, *(f"{count:5d} refused: {reason}" for reason, count in reasons.most_common())])


def run(config: PrepareConfig) -> None:
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sandboxes.check(config.sandbox)
    refused: list[str] = []
    tasks, record, now = tasks_of(config.tasks, refused), record_of(out), inputs.of(config, inputs.ADMISSION)
    for line in refused:
        print(f"left out: {line}", flush=True)
    made_by = out.with_suffix(".inputs.json")
    inputs.compare(made_by, now, inputs.ADMISSION, config=config, made=record.exists(), remedy="take another `out:`")
    write_json(made_by, now)
    known = read_record(record)
    done = {
        task.task_id: known[task.task_id]
        for task in tasks
        if task.task_id in known and known[task.task_id].fingerprint == contents.task(task)
    }
    if done:
        print(f"{len(done)} of {len(tasks)} were decided before: {record}")
    undecided = asyncio.run(prepare(config, [task for task in tasks if task.task_id not in done], record, done))
    good = [
        admitted(task, done[task.task_id]) for task in tasks if task.task_id in done and done[task.task_id].admitted
    ]
    jsonl.write(out, good)
    print(table(list(done.values())))
    print(
        f"{len(good)} of {len(tasks)} admitted: {out}"
        + (f"; {undecided} undecided: the same command tries them again" if undecided else "")
        + (f"; {len(refused)} rows that cannot be used" if refused else "")
    )
    if undecided or refused:
        sys.exit(1)


# ---- decontamination ------------------------------------------------------------------------------------------------


def read_set(path: str) -> list[Task]:
    if path.endswith(".jsonl"):
        return jsonl.read(Path(path))
    return tasks_of(load(PrepareConfig, path).tasks)


def decontaminate(train_path: str, options: dict[str, str]) -> None:
    train, evaluation = read_set(train_path), read_set(options["--decontaminate"])
    findings = contamination(train, evaluation)
    for kind in KINDS:
        found = [finding for finding in findings if finding.kind == kind]
        print(f"{len(found):5d} of {len(train)} training tasks: {kind}")
        for finding in found[:10] if kind in KINDS[:2] else []:
            print(
                f"        {finding.task_id} ~ {finding.other}"
                + (f", {finding.overlap:.0%} of its changed lines" if finding.overlap else "")
            )
    bad = {finding.task_id for finding in findings if finding.kind in KINDS[:2]}
    clean = [task for task in train if task.task_id not in bad]
    if "--before" in options:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", options["--before"]):
            raise ConfigError(f"--before {options['--before']!r}: write a day, such as 2023-01-01")
        clean, later = split_by_date(clean, options["--before"])
        print(f"{len(clean)} training tasks are older than {options['--before']}, {len(later)} are not")
    if "--out" in options:
        jsonl.write(Path(options["--out"]), clean)
        print(f"{len(clean)} tasks: {options['--out']}")
    elif bad:
        sys.exit(CONTAMINATED)


@program(PrepareConfig)
def main(arguments: list[str]) -> None:
    if "--decontaminate" not in arguments:
        run(load(PrepareConfig, arguments[0], arguments[1:]))
        return
    names, values = arguments[1::2], arguments[2::2]
    if len(names) != len(values) or not set(names) <= {"--decontaminate", "--before", "--out"}:
        raise ConfigError("write: prepare_tasks.py TRAIN --decontaminate EVAL [--before DAY] [--out FILE]")
    decontaminate(arguments[0], dict(zip(names, values)))


if __name__ == "__main__":
    main(sys.argv[1:])
