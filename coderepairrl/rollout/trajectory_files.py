"""Trajectories on disk: one Parquet file a step, readable by `datasets` and pandas without this project.

Every file carries SCHEMA_VERSION and a `stats` JSON object in its metadata. Written under a temporary name, then
renamed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coderepairrl.errors import TaskError
from coderepairrl.types import Call, Outcome, Trajectory, Verdict, VerdictKind

SCHEMA_VERSION = "1"
_CALL = pa.struct(
    [
        ("index", pa.int32()),
        ("parent", pa.int32()),
        ("parent_part", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("policy_versions", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("rerendered", pa.bool_()),
        ("started_s", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("group_id", pa.string()),
        ("task_id", pa.string()),
        ("split", pa.string()),
        ("attempt", pa.int32()),
        ("calls", pa.list_(_CALL)),
        ("diff", pa.string()),
        ("outcome", pa.string()),
        ("outcome_detail", pa.string()),
        ("verdict", pa.string()),
        ("rewards", pa.string()),
        ("reward", pa.float64()),
        ("seconds", pa.float64()),
        ("events", pa.string()),
        ("stats", pa.string()),
        ("task_set", pa.string()),  # this and the next are not in files of before
        ("scaffold", pa.string()),
    ]
)
_JSON = ("verdict", "rewards", "events", "stats")  # nested and small: JSON text columns


def write(path: Path, trajectories: Sequence[Trajectory], stats: dict) -> str:
    """Returns the file's sha256."""
    digest = write_temporary(path, trajectories, stats)
    publish(path)
    return digest


def publish(path: Path) -> None:
    """The second half of a write: what `write_temporary` wrote gets its name."""
    path.with_name(path.name + ".tmp").rename(path)


def write_temporary(path: Path, trajectories: Sequence[Trajectory], stats: dict) -> str:
    """The first half of a write, for callers that book the file before others see it. Returns its sha256."""
    rows = []
    for trajectory in trajectories:
        row = dataclasses.asdict(trajectory)
        rows.append(row | {name: json.dumps(row[name], default=str, allow_nan=False) for name in _JSON})
    table = pa.Table.from_pylist(
        rows, SCHEMA.with_metadata({"schema_version": SCHEMA_VERSION, "stats": json.dumps(stats, allow_nan=False)})
    )
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, temporary)
    return sha256(temporary)


def read_stats(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"stats"])


def task_ids(path: Path) -> list[str]:
    return pq.read_table(path, columns=["task_id"])["task_id"].to_pylist()


def read(path: Path) -> tuple[list[Trajectory], dict]:
    """(trajectories, stats)."""
    table = pq.read_table(path)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise TaskError(
            f"{path}: schema version {metadata.get('schema_version')} instead of {SCHEMA_VERSION}: read it with the "
            "version that wrote it"
        )
    trajectories = []
    for row in table.to_pylist():
        row |= {name: json.loads(row[name]) for name in _JSON}
        calls = tuple(
            Call(**{key: tuple(value) if isinstance(value, list) else value for key, value in call.items()})
            for call in row["calls"]
        )
        verdict = _verdict(row["verdict"]) if row["verdict"] else None
        trajectories.append(
            Trajectory(
                **row
                | {
                    "calls": calls,
                    "verdict": verdict,
                    "outcome": Outcome(row["outcome"]),
                    "events": tuple(row["events"]),
                }
            )
        )
    return trajectories, json.loads(metadata["stats"])


def _verdict(fields: dict) -> Verdict:
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    # files of before had no kinds
    return Verdict(**known | ({"kind": VerdictKind(fields["kind"])} if "kind" in fields else {}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
