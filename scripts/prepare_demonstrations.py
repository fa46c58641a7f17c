"""Demonstrations at scale: an expert works on bugs with real failing tests, its tools' answers computed.

    python scripts/prepare_demonstrations.py configs/pretrained/demonstrations.yaml [a.b=c ...]

Writes OUTPUT, a file of conversations that scripts/train_sft.py reads (source kind `chat`). Bugs come from
scripts/prepare_bugs.py; those
of `heldout_packages` are left out. The same settings give the same conversations; a file that is there stays.
"""

import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.curation.failing import FailingBug
from coderepairrl.demonstrations.debugging import DebuggingConfig, SourceTree, conversation
from coderepairrl.demonstrations.untested import place_of, untested_bugs
from coderepairrl.errors import ConfigError
from coderepairrl.files import read_jsonl, whole
from coderepairrl.run.program import program
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.tasks.packages import environment, packages


class UntestedConfig(Config):
    """Bugs of installed packages that no test was run for."""

    modules: tuple[str, ...] = ()  # by the names that they are imported by
    count: NonNegativeInt = 1000  # bugs of each, at most


class PrepareDemonstrationsConfig(Config):
    output: str  # the file that is written, .jsonl
    bugs: str  # of scripts/prepare_bugs.py
    heldout_packages: tuple[str, ...] = ()  # nothing of them is shown
    repeat: PositiveInt = 1  # demonstrations of each bug, each done otherwise
    untested: UntestedConfig = UntestedConfig()  # beside them
    seed: NonNegativeInt = 0  # of what is drawn
    expert: DebuggingConfig = DebuggingConfig()
    scaffold: TerminalConfig = TerminalConfig()  # as in training


def of_package(config: PrepareDemonstrationsConfig, name: str, bugs: list[FailingBug]) -> list[str]:
    """Lines of the file."""
    if any(bug.lock != packages()[name].sha256 for bug in bugs):
        raise ConfigError(
            f"{config.bugs}: its bugs of {name} are of another version than packages.yaml pins: make them again"
        )
    repository, rows = SourceTree(Path(environment(name).base)), []
    for number, bug in enumerate(bugs):
        for again in range(config.repeat):
            rng = random.Random(f"{config.seed}-{name}-{number}-{again}")
            rows.append(conversation(bug, repository, rng, config.expert, config.scaffold))
    return [json.dumps(row) + "\n" for row in rows if row]


def of_module(config: PrepareDemonstrationsConfig, module: str) -> list[str]:
    """Lines of the file."""
    base, folder = place_of(module)
    repository, rng = SourceTree(base, folder), random.Random(f"{config.seed}-{module}")
    bugs = untested_bugs(module, repository.files, config.untested.count, rng)
    rows = [conversation(bug, repository, rng, config.expert, config.scaffold) for bug in bugs]
    return [json.dumps(row) + "\n" for row in rows if row]


@program(PrepareDemonstrationsConfig)
def main(arguments: list[str]) -> None:
    config = load(PrepareDemonstrationsConfig, arguments[0], arguments[1:])
    output = Path(config.output)
    if output.exists():
        print(f"{output}: already there")
        return
    by_package: dict[str, list[FailingBug]] = {}
    for row in read_jsonl(Path(config.bugs)):
        bug = FailingBug.model_validate(row)
        if bug.package not in config.heldout_packages:
            by_package.setdefault(bug.package, []).append(bug)
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        jobs = [pool.submit(of_package, config, name, bugs) for name, bugs in by_package.items()]
        jobs += [pool.submit(of_module, config, module) for module in config.untested.modules]
        lines = [line for job in jobs for line in job.result()]
    if not lines:
        raise ConfigError(f"{config.bugs}: no bug can be demonstrated: correct the path, or heldout_packages")
    random.Random(config.seed).shuffle(lines)
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as temporary:
        temporary.write_text("".join(lines))
    bugs = sum(map(len, by_package.values()))
    tested = f"{bugs} bugs with failing tests in {len(by_package)} packages"
    print(f"{len(lines)} demonstrations, of them those of {tested}; {sum(map(len, lines)):,} characters")


if __name__ == "__main__":
    main(sys.argv[1:])
