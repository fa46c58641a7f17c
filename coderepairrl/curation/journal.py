"""What the programs share that make a task set of candidates: how many are wanted of which package, and what was
decided of each.

OUT.journal holds a row a candidate, in the order of the decisions: {"candidate", "package", ..., "row": the admitted
task} or {..., "refused": why}.
So a program that is started again goes on where it was interrupted; OUT.inputs.json holds what candidates were drawn
from.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from coderepairrl.config import Config
from coderepairrl.curation.suite import Refused
from coderepairrl.files import drop_torn_line, read_jsonl, write_json
from coderepairrl.run import inputs


def add_arguments(parser: argparse.ArgumentParser, names: Collection[str], count: int, unit: str) -> None:
    """OUT and --packages NAME=COUNT ...; without it `count` of each name. `unit`: what is counted."""

    def wish(text: str) -> tuple[str, int]:
        name, equals, number = text.partition("=")
        if name not in names or not equals or not number.isdigit():
            raise argparse.ArgumentTypeError(f"{text!r}: write NAME=COUNT, with a name of {', '.join(names)}")
        return name, int(number)

    parser.add_argument(
        "out", type=Path, help="the file of admitted tasks, .jsonl; OUT.journal beside it keeps every decision"
    )
    parser.add_argument(
        "--packages",
        nargs="+",
        type=wish,
        default=[(name, count) for name in names],
        metavar="NAME=COUNT",
        help=f"int; how many {unit} of which package (default: {count} of each)",
    )


class Journal:
    def __init__(self, out: Path, made_by: dict[str, Any]):
        """Raises ConfigError when the candidates of `out` were drawn otherwise."""
        self.path = out.with_name(out.name + ".journal")
        drop_torn_line(self.path)
        self.decisions = {row["candidate"]: row for row in (read_jsonl(self.path) if self.path.exists() else [])}
        record = out.with_name(out.name + ".inputs.json")
        inputs.compare(record, made_by, (), made=bool(self.decisions), remedy="take another OUT")
        write_json(record, made_by)

    def decide(self, candidate: str, admit: Callable[[], Config], **facts: str) -> dict:
        """The candidate's decision: that of an earlier run, or what `admit` says (the admitted row, or Refused) with
        `facts`."""
        if candidate not in self.decisions:
            decision = {"candidate": candidate} | facts
            try:
                decision["row"] = admit().model_dump(mode="json")
            except Refused as reason:
                decision["refused"] = str(reason)
            with self.path.open("a") as file:
                file.write(json.dumps(decision) + "\n")
            self.decisions[candidate] = decision
        return self.decisions[candidate]

    def admitted(self, packages: Collection[str]) -> list[dict]:
        """The rows of these packages; prints how many candidates were decided how."""
        decided = [decision for decision in self.decisions.values() if decision["package"] in packages]
        rows = [decision["row"] for decision in decided if "row" in decision]
        print(f"{len(rows)} admitted of {len(decided)}")
        for (name, how), count in Counter(
            (decision["package"], decision.get("refused", "admitted")) for decision in decided
        ).most_common():
            print(f"{count:6d}  {name:16s} {how}")
        return rows
