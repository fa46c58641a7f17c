"""Bugs with real failing tests for demonstrations, thousands in minutes: tried in forks of one run of a suite.

    python scripts/prepare_bugs.py bugs.jsonl --packages toolz=800 sqlparse=2000 --workers 16

COUNT is how many candidates are tried of a package; two of five become a bug. OUT.parts keeps a file a chunk of
candidates: started again, the program makes what is missing. `--shard K/N` makes every Nth chunk (a job of a Slurm
array), and whoever finds all of them there merges them. Ids, spans and statements are kept, packages are not.
Demonstrations are made of them by scripts/prepare_demonstrations.py.
"""

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from coderepairrl.config import contents
from coderepairrl.curation.failing import Candidate, FailingBug, draw, files_of, find_bugs, mutations_of
from coderepairrl.curation.journal import add_arguments
from coderepairrl.curation.source_edits import Mutation
from coderepairrl.errors import CodeRepairError, TaskError
from coderepairrl.files import read_jsonl, write_json, write_jsonl
from coderepairrl.processes import logs
from coderepairrl.run import inputs
from coderepairrl.tasks.packages import FOLDER, packages

CHUNK = 50  # candidates


def make(path: Path, name: str, chosen: list[Candidate]) -> str:
    """Writes the chunk's file. Returns why there is none."""
    try:
        write_jsonl(path, [bug.model_dump(mode="json") for bug in find_bugs(name, chosen)])
    except TaskError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, packages(), 400, "candidates to try")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="int; processes (default: one a core)")
    parser.add_argument("--vain", type=int, default=2, help="int; edits in vain to look for, a bug (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="int; of the order of candidates (default: 0)")
    parser.add_argument("--shard", default="0/1", help="K/N; every Nth chunk, from the Kth (default: 0/1)")
    arguments = parser.parse_args()
    logs.to_stderr()
    made_by = {
        "seed": arguments.seed,
        "vain": arguments.vain,
        "packages": contents.named(str(FOLDER / "packages.yaml")),
    }
    parts = arguments.out.with_name(arguments.out.name + ".parts")
    record = parts.with_name(arguments.out.name + ".inputs.json")
    inputs.compare(record, made_by, (), made=parts.is_dir() and any(parts.iterdir()), remedy="take another OUT")
    parts.mkdir(parents=True, exist_ok=True)
    write_json(record, made_by)
    counts = dict(arguments.packages)
    shard, shards = map(int, arguments.shard.split("/"))
    chunks = [(name, start) for name, count in counts.items() for start in range(0, count, CHUNK)]
    chunks.sort(key=lambda chunk: chunk[1])  # so that an interrupted run has some of each package
    paths = {chunk: parts / f"{chunk[0]}-{chunk[1]:06d}.jsonl" for chunk in chunks}
    wanted = [chunk for chunk in chunks[shard::shards] if not paths[chunk].exists()]
    names = sorted({name for name, _ in wanted})
    files = [(name, path) for name in names for path in files_of(name)]
    failed: Counter[str] = Counter()
    with ProcessPoolExecutor(arguments.workers, get_context("fork")) as pool:
        found: dict[str, dict[str, list[Mutation]]] = {name: {} for name in names}
        every = pool.map(mutations_of, [name for name, _ in files], [path for _, path in files])
        for (name, path), mutations in zip(files, every, strict=True):
            found[name][path] = mutations
        drawn = {name: draw(name, found[name], counts[name], arguments.seed, arguments.vain) for name in names}
        jobs = [pool.submit(make, paths[name, at], name, drawn[name][at : at + CHUNK]) for name, at in wanted]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="bugs", unit="chunk", mininterval=1):
            failed[job.result()] += 1
    del failed[""]
    for cause, count in failed.most_common():
        print(f"left out, {count} chunks: {cause}", file=sys.stderr)
    there = [path for path in paths.values() if path.exists()]
    if len(there) + sum(failed.values()) == len(chunks):
        rows = [FailingBug.model_validate(row) for path in there for row in read_jsonl(path)]
        write_jsonl(arguments.out, [row.model_dump(mode="json") for row in rows])
        print(f"{len(rows)} bugs of {len({row.package for row in rows})} packages in {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except CodeRepairError as error:
        sys.exit(f"prepare_bugs: {error}")
