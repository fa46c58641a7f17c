"""ledger.jsonl, append-only: what became of every group. One process writes; every row carries the hash of all rows
before it.

    {"event": "admitted",  "group", "task", "split", "position", "version", "episodes"}
                           position: place in the data order (split train); "set", "scaffold": of mixtures
    {"event": "finished",  "group", "outcomes": [...], "sampled": tokens}
    {"event": "graded",    "group", "rewards": [...]}
    {"event": "stored",    "group", "step", "file", "sha256"}
                           the Parquet file that holds the group; the last row counts
    {"event": "trained",   "group", "step", "version", "trained": tokens, "masked": {reason: tokens}}
                           an end
    {"event": "dropped",   "group", "reason", "tokens", "step", "version"}
                           an end; step: whose refill it was (reason zero_variance); version: the newest that sampled it
                           (reason evaluation)
    {"event": "infrastructure_error", "group", "trajectory", "attempt", "detail", "tokens"}
                           tokens: of an attempt that was thrown away
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from coderepairrl.files import drop_torn_line

FIRST = "0" * 16


def _chained(previous: str, row: dict) -> str:
    return hashlib.sha256((previous + json.dumps(row, sort_keys=True, allow_nan=False)).encode()).hexdigest()[:16]


class Ledger:
    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        self._last = FIRST
        for row in rows(path):
            self._last = row["hash"]
        self._file = path.open("a", buffering=1)

    def write(self, event: str, group: str, **fields) -> None:
        row = {"event": event, "group": group} | fields
        self._last = _chained(self._last, row)
        self._file.write(json.dumps(row | {"hash": self._last}) + "\n")

    def close(self) -> None:
        self._file.close()


def rows(path: Path) -> Iterator[dict]:
    """All whole rows; a last line without its end is being written, or was left by a writer that was killed."""
    if path.exists():
        with path.open() as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def broken_link(all_rows: list[dict]) -> int | None:
    """Number (from 1) of the first row that doesn't follow from those before it, None when the chain holds."""
    previous = FIRST
    for number, row in enumerate(all_rows, 1):
        body = {key: value for key, value in row.items() if key != "hash"}
        if row.get("hash") != _chained(previous, body):
            return number
        previous = row["hash"]
    return None
