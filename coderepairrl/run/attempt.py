"""One try of a run, on one node or several: who makes it, whether its nodes are alive, whether it is to stop.

A driver runs on every node; they meet in the run folder, by renames and mkdir alone, which every shared file system
does right:
    attempt.json             {"attempt": 3, "owner": {"job", "restart"} or null, "ready": true}: written by node 0; and
                             "done": true when there is nothing to do any more. A driver that finds a newer number than
                             its own has been superseded, and ends what it started
    heartbeats/node_1.json   {"attempt", "host", "time", "state": running | ended, "reason", "processes", "address",
                             "port"}, every few seconds
    stop.json                {"attempt": 3}: a signal asked for a checkpoint and the end, which is all that a time limit
                             leaves time for
    attempts.jsonl           {"attempt", "job", "progress": [checkpointed step, finished groups], "changed": {key:
                             [before,
                             now]}} at each attempt's beginning, changed: the inputs that are not those of the attempt
                             before; {"attempt", "state", "reason"} at its end
"""

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.processes import cause, proc
from coderepairrl.rollout import ledger

BEAT_EVERY_S = 3.0
SILENT_S = 30.0  # a node on another machine that has not been heard of for so long is dead
ECHO_S = SILENT_S + BEAT_EVERY_S  # for the node that failed first to say why, after another one has noticed
PATIENCE_S = 60.0  # for the processes of a former attempt to end
JOIN_S = 600.0  # for the other nodes of a job to come up
STUCK_AFTER = 3  # attempts in a row without progress
PLACE = "CODEREPAIRRL_PLACE"  # environment variable: the JSON of a Place
STOPPED = 75  # exit code of a program that a signal stopped with all its work kept: start it again. BSD's EX_TEMPFAIL


@dataclass(frozen=True)
class Owner:
    """The Slurm job, and how many times it had been requeued."""

    job: str
    restart: int


@dataclass(frozen=True)
class Place:
    """Where a driver stands: node `node` of serve_nodes + train_nodes, the serving ones first. train_nodes 0: one node
    does both."""

    node: int = 0
    serve_nodes: int = 1
    train_nodes: int = 0
    address: str = "127.0.0.1"  # of this node, as the others see it
    owner: Owner | None = None
    # "serve", "train", "agents" -> SIF; without one, the node's own environment
    images: dict[str, str] = field(default_factory=dict)
    container_options: tuple[str, ...] = ()  # of apptainer exec

    @classmethod
    def here(cls) -> "Place":
        """As the job that started this process says; without one, this machine alone."""
        said = json.loads(os.environ.get(PLACE, "{}"))
        owner = said.pop("owner", None)
        return cls(**said, owner=Owner(**owner) if owner else None)

    def variable(self) -> dict[str, str]:
        return {PLACE: json.dumps(asdict(self))}

    @property
    def nodes(self) -> int:
        return self.serve_nodes + self.train_nodes

    @property
    def trainers(self) -> range:
        """The nodes that only train."""
        return range(self.serve_nodes, self.nodes)

    @property
    def serves(self) -> bool:
        return self.node < self.serve_nodes

    @property
    def trains(self) -> bool:
        return not self.serves or not self.train_nodes


class Attempt:
    """This node's part in attempt `number`."""

    def __init__(self, run: Path, number: int, place: Place):
        self.run, self.number, self.place = run, number, place
        self._beat: dict[str, Any] = {}
        self._beaten = 0.0
        self._heard = Heard()
        self._echo_s: float | None = None  # since when a node has said that it lost another

    def beat(self, processes: list[int] = (), **said: Any) -> None:
        """Says that this node is alive; at most every few seconds, unless there is news. `processes`: the leaders of
        its process groups."""
        beat = (
            self._beat
            | {
                "attempt": self.number,
                "host": host(),
                "state": "running",
                "reason": "",
                "address": self.place.address,
                "processes": [_identity(pid) for pid in (os.getpid(), *processes)],
            }
            | said
        )
        if beat == self._beat and time.monotonic() - self._beaten < BEAT_EVERY_S:
            return
        self._beat, self._beaten = beat, time.monotonic()
        write_json(_beat_path(self.run, self.place.node), beat | {"time": round(time.time(), 3)})

    def end(self, reason: str = "") -> None:
        self.beat(state="ended", reason=reason)

    def other(self, node: int) -> dict | None:
        """What another node has said in this attempt."""
        said = read_json(_beat_path(self.run, node))
        return said if said and said["attempt"] == self.number else None

    def lost(self) -> str:
        """Why this attempt can't go on though this node could; "" if it can.

        A node that only says that it lost another one is believed when no other has said more for a while.
        """
        newest = (read_json(self.run / "attempt.json") or {"attempt": self.number})["attempt"]
        if newest != self.number:
            return f"attempt {newest} has taken over"
        echoes, running = [], False
        for node in range(self.place.nodes):
            said = self.other(node) if node != self.place.node else None
            if said is None or (said["state"] == "ended" and not said["reason"]):
                continue
            if said["state"] == "ended":
                reason = f"node {node} ({said['host']}): {said['reason']}"
                if not cause.is_echo(said["reason"]):
                    return reason
                echoes.append(reason)
            elif not self._heard.alive(node, said):
                return f"node {node} ({said['host']}) has not been heard of for {SILENT_S:.0f} s"
            else:
                running = True
        if echoes and self._echo_s is None:
            self._echo_s = time.monotonic()
        return echoes[0] if echoes and (not running or time.monotonic() - self._echo_s > ECHO_S) else ""

    def ended(self, nodes: Iterable[int]) -> bool:
        """Whether each of these has ended its part, or can't say so any more."""
        beats = [(node, self.other(node)) for node in nodes]
        return all(
            said is not None and (said["state"] == "ended" or not self._heard.alive(node, said)) for node, said in beats
        )

    def ask_to_stop(self) -> None:
        write_json(self.run / "stop.json", {"attempt": self.number})

    def asked_to_stop(self) -> bool:
        return stop_asked(self.run, self.number)


def stop_asked(run: Path, attempt: int) -> bool:
    return read_json(run / "stop.json") == {"attempt": attempt}


class Heard:
    """Which nodes are alive: on this machine by their processes, elsewhere by whether their heartbeats still change (no
    two clocks are compared)."""

    def __init__(self):
        self._changed: dict[int, tuple[float, float]] = {}  # node -> (time that it said, when that was new to us)

    def alive(self, node: int, said: dict) -> bool:
        if said["host"] == host():
            return any(_runs(pid, start) for pid, start in said["processes"])
        if said["state"] == "ended":
            return False
        time_said, since = self._changed.get(node, (None, 0.0))
        if time_said != said["time"]:
            since = time.monotonic()
            self._changed[node] = said["time"], since
        return time.monotonic() - since < SILENT_S


def lead(run: Path, place: Place) -> Attempt:
    """Node 0: makes the next attempt its own, once nothing of the former one is alive any more. EngineError when that
    stays alive.

    A requeued job supersedes its own former attempt at once: a node that was cut off learns it from attempt.json, and
    ends.
    """
    (run / "heartbeats").mkdir(parents=True, exist_ok=True)
    heard, deadline = Heard(), time.monotonic() + PATIENCE_S
    while True:
        former = read_json(run / "attempt.json") or {"attempt": 0, "owner": None}
        begun = (read_json(_beat_path(run, 0)) or {"attempt": 0})["attempt"]
        if max(_folders(run), former["attempt"]) > begun:  # somebody is just making it, or died there
            _within(deadline, run)
            if time.monotonic() < deadline - PATIENCE_S / 2:
                continue
        mine = place.owner and former["owner"] and former["owner"]["job"] == place.owner.job
        if not mine and _alive(run, heard):
            _within(deadline, run)
            continue
        number = 1 + max(_folders(run), former["attempt"])
        try:
            (run / "logs" / f"attempt_{number}").mkdir(parents=True)
        except FileExistsError:
            continue  # another one was faster
        break
    owner = asdict(place.owner) if place.owner else None
    attempt = Attempt(run, number, place)
    write_json(run / "attempt.json", {"attempt": number, "owner": owner, "ready": False})
    deadline = time.monotonic() + PATIENCE_S
    while _alive(run, heard):
        _within(deadline, run)
    attempt.beat()
    return attempt


def follow(run: Path, place: Place) -> Attempt | None:
    """Any other node: the newest attempt of its job that it has not had a part in, as soon as node 0 is ready.

    None: node 0 says that the run is done.

    EngineError when none comes.
    """
    had = (read_json(_beat_path(run, place.node)) or {"attempt": 0})["attempt"]
    deadline = time.monotonic() + JOIN_S
    while time.monotonic() < deadline:
        newest = read_json(run / "attempt.json")
        if newest and newest.get("done") and newest["owner"] == asdict(place.owner):
            return None
        if newest and newest["ready"] and newest["attempt"] > had and newest["owner"] == asdict(place.owner):
            return Attempt(run, newest["attempt"], place)
        time.sleep(0.2)
    raise EngineError(
        f"node {place.node}: no attempt of job {place.owner.job} began within {JOIN_S:.0f} s: see the log of its first "
        "node"
    )


def ready(attempt: Attempt, changed: dict[str, list] = {}) -> None:
    """The folder is prepared: the other nodes may begin. `changed`: inputs that are not those of the attempt before."""
    owner = attempt.place.owner
    begins = {"job": owner and owner.job, "progress": progress(attempt.run)}
    note(attempt, begins | ({"changed": changed} if changed else {}))
    write_json(attempt.run / "attempt.json", read_json(attempt.run / "attempt.json") | {"ready": True})


def finish(attempt: Attempt) -> None:
    """The run is done: a node that comes back finds nothing to join."""
    write_json(attempt.run / "attempt.json", read_json(attempt.run / "attempt.json") | {"done": True})


def note(attempt: Attempt, row: dict) -> None:
    with (attempt.run / "attempts.jsonl").open("a") as file:
        file.write(json.dumps({"attempt": attempt.number, "time": round(time.time(), 3)} | row) + "\n")


def progress(run: Path) -> list[int]:
    """[newest checkpointed step, groups that were finished]: what an attempt is to increase."""
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.suffix != ".tmp"]
    return [max(steps, default=0), sum(row["event"] == "finished" for row in ledger.rows(run / "ledger.jsonl"))]


def stuck(run: Path, job: str) -> bool:
    """Whether the job's last attempts all began where the run still is."""
    rows = [row for row in ledger.rows(run / "attempts.jsonl") if row.get("job") == job][-STUCK_AFTER:]
    now = progress(run)
    return len(rows) == STUCK_AFTER and all(row["progress"] == now for row in rows)


@cache
def host() -> str:
    """This machine, until it boots again."""
    return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}"


def _beat_path(run: Path, node: int) -> Path:
    return run / "heartbeats" / f"node_{node}.json"


def _alive(run: Path, heard: Heard) -> bool:
    beats = {int(path.stem.removeprefix("node_")): read_json(path) for path in (run / "heartbeats").glob("node_*.json")}
    mine = lambda said: said["host"] == host() and said["processes"][0] == _identity(os.getpid())
    return any([said is not None and not mine(said) and heard.alive(node, said) for node, said in beats.items()])


def _folders(run: Path) -> int:
    return max((int(path.name.removeprefix("attempt_")) for path in (run / "logs").glob("attempt_*")), default=0)


def _within(deadline: float, run: Path) -> None:
    if time.monotonic() > deadline:
        raise EngineError(
            f"{run} is in use by another process: end it, or wait until it has ended, then start the same command again"
        )
    time.sleep(0.2)


def _runs(pid: int, start: int) -> bool:
    """Whether this process is there, or has left others in its process group."""
    now = _identity(pid)[1]
    if now or Path(f"/proc/{pid}").exists():
        return now == start
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _identity(pid: int) -> list[int]:
    """[pid, start time in clock ticks]: a number that is given again later is another process. Start 0: there is no
    such process."""
    return [pid, proc.start_of(pid) or 0]
