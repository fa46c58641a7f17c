"""What a job of the launcher's tests runs: says where it is, and ends as its configuration says."""

import json
import os
import sys
import time
from pathlib import Path

import coderepairrl
from coderepairrl.config import Config, load
from coderepairrl.errors import TaskError
from coderepairrl.run.program import program


class SmallConfig(Config):
    run: str
    number: float = 0.0
    seconds: float = 0.0
    fails: bool = False


@program
def main(arguments: list[str]) -> None:
    config = load(SmallConfig, arguments[0], arguments[1:])
    time.sleep(config.seconds)
    if config.fails:
        raise TaskError("it was told to fail: tell it something else")
    said = {
        "number": config.number,
        "here": os.getcwd(),
        "package": coderepairrl.__file__,
        "variable": os.environ.get("SMALL_JOB"),
    }
    (Path(config.run) / "said.json").write_text(json.dumps(said))


main(sys.argv[1:])
