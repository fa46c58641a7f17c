"""The driver of a run's attempt on one node: starts the rollout process, or the trainer's ranks, or both; watches, and
ends all by process groups.

On one machine it is the whole run. Of a job with several nodes each has one; they meet in the run folder (attempt.py),
node 0 leads.

status.json: {"state": running | done | stopped | failed, "attempt", "step": optimizer updates so far, "reason" of the
end, "recoveries":
the last of {"time", "what"}: each restart of vLLM with its cause, over all attempts; "infrastructure_errors": of this
attempt, once there are any
(infrastructure.py)}.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from coderepairrl.config import contents, dump
from coderepairrl.errors import CodeRepairError, ConfigError, EngineError
from coderepairrl.files import ROOT, read_json, write_json
from coderepairrl.processes import cause
from coderepairrl.processes.containers import in_image
from coderepairrl.processes.starting import ends_with_parent, free_port, interface_of, ranks_command, ranks_environment
from coderepairrl.rollout import ledger
from coderepairrl.run import attempt as attempts
from coderepairrl.run import resume
from coderepairrl.run.attempt import Attempt, Place
from coderepairrl.run.provenance import provenance
from coderepairrl.run.summary import write_summary

PATIENCE_S = 30.0  # for a program to end by itself after SIGTERM
LOOK_S = 0.2
KEPT_RECOVERIES = 20


class Stopped(CodeRepairError):
    """A signal ended the attempt; everything is kept."""


def start_of(run: Path, model: str) -> tuple[int, int, str]:
    """(first step to do, version of the weights to start from, their folder): from the newest checkpoint, or from the
    beginning."""
    checkpoints = sorted(path for path in (run / "checkpoints").glob("step_*") if path.suffix != ".tmp")
    if not checkpoints:
        return 0, 0, model
    state = read_json(checkpoints[-1] / "state.json")
    return state["step"], state["version"], str(checkpoints[-1] / "policy")


def drive(config, run: Path, arguments: list[str]) -> None:
    """Raises CodeRepairError with the reason when the attempt fails; status.json holds it as well. Exits with
    attempt.STOPPED after SIGUSR2."""
    if not (run / "summary.json").exists():
        contents.there(config.model)
    place = Place.here()
    if place.node:
        try:
            if attempt := attempts.follow(run, place):
                _work(config, run, arguments, attempt)
        except Stopped:
            sys.exit(attempts.STOPPED)
        return
    for folder in ("logs", "rollouts/buffer", "checkpoints", "policy"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    _lead(config, run, arguments, attempts.lead(run, place))


def _lead(config, run: Path, arguments: list[str], attempt: Attempt) -> None:
    try:
        changed = resume.admit(config, run)
        if resume.finished(run, config.training.steps):
            print(
                f"{run}: done already, see {run / 'summary.json'}; more training.steps go on, "
                "another run needs another `run:` folder"
            )
            _status(run, "done", (read_json(run / "status.json") or {"attempt": attempt.number})["attempt"])
            attempts.finish(attempt)
            attempt.end()
            return
        dump(config, run / "config.yaml")
        write_json(run / "provenance.json", provenance(arguments))
        _prepare(run, config.model, config.training.steps)
        _status(run, "running", attempt.number)
        attempts.ready(attempt, changed)
        _work(config, run, arguments, attempt)
        _await_others(attempt)
        write_summary(run)
        attempts.finish(attempt)
        _over(attempt, "done")
    except Stopped as stopped:
        _over(attempt, "stopped", str(stopped))
        sys.exit(attempts.STOPPED)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            reason = "stopped by the user or a signal: the same command goes on from the newest checkpoint"
        else:
            reason = str(error) if isinstance(error, CodeRepairError) else f"{type(error).__name__}: {error}"
        _over(attempt, "failed", reason)
        raise


def _over(attempt: Attempt, state: str, reason: str = "") -> None:
    # a finished run that refuses a command stays done
    if state == "done" or not (attempt.run / "summary.json").exists():
        _status(attempt.run, state, attempt.number, reason)
    attempts.note(attempt, {"state": state, "reason": reason})


def _work(config, run: Path, arguments: list[str], attempt: Attempt) -> None:
    """This node's part: returns when its programs have ended well, Stopped or CodeRepairError otherwise; says so to the
    other nodes."""
    children: dict[str, subprocess.Popen] = {}
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGUSR2, lambda *_: stop.append(1))
    reason = "ended by a signal"
    try:
        _start(children, config, run, arguments, attempt)
        _follow(children, run, attempt, stop)
        reason = ""
    except Stopped:
        reason = ""
        raise
    except CodeRepairError as error:
        reason = str(error)
        raise
    finally:
        _end(children)
        attempt.end(reason)


def _start(children: dict[str, subprocess.Popen], config, run: Path, arguments: list[str], attempt: Attempt) -> None:
    place, training = attempt.place, config.training
    os.environ["CODEREPAIRRL_RUN"] = str(run.resolve())  # every process of a run can be told by it
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CODEREPAIRRL_ATTEMPT": str(attempt.number),
        "PYTHONUNBUFFERED": "1",
    }
    if place.nodes > 1:
        name = interface_of(place.address)
        # the site's word counts
        environment = {
            "GLOO_SOCKET_IFNAME": name,
            "NCCL_SOCKET_IFNAME": name,
            "VLLM_HOST_IP": place.address,
        } | environment
    program = [sys.argv[0], *arguments]
    if place.serves and place.node:
        children["server"] = _spawn(
            [sys.executable, *program, "role=serve", f"rollout.server.host={place.address}"],
            _log(attempt, "server"),
            environment,
        )
    elif place.serves:
        children["rollout"] = _spawn(
            [sys.executable, *program, "role=rollout", f"rollout.server.host={place.address}"],
            _log(attempt, "rollout"),
            environment,
        )
    attempt.beat([child.pid for child in children.values()])
    if place.trains:
        command = in_image(
            place.images.get("train"),
            ranks_command(training.ranks, [*program, "role=train"], *_rendezvous(attempt)),
            binds=[ROOT, run.resolve(), Path(config.model).resolve()],
            options=place.container_options,
        )
        children["trainer"] = _spawn(
            command, _log(attempt, "trainer"), environment | ranks_environment(training.threads, training.devices)
        )


def _logs(attempt: Attempt) -> Path:
    return attempt.run / "logs" / f"attempt_{attempt.number}"


def _log(attempt: Attempt, name: str) -> Path:
    """Of a program on this node. The first node that serves, and the first that trains, go without a number."""
    number = attempt.place.node if attempt.place.serves else attempt.place.node - attempt.place.serve_nodes
    return _logs(attempt) / (f"{name}_{number}.log" if number else f"{name}.log")


def _rendezvous(attempt: Attempt) -> tuple[int, int, str]:
    """(training nodes, number of this one among them, address:port of the first), which picks a free port and says it
    in its heartbeat."""
    place = attempt.place
    if place.train_nodes <= 1:
        return 1, 0, ""
    if place.node == place.serve_nodes:
        port = free_port(place.address)
        attempt.beat(port=port)
        return place.train_nodes, 0, f"{place.address}:{port}"
    deadline = time.monotonic() + attempts.JOIN_S
    while time.monotonic() < deadline and not attempt.lost():
        first = attempt.other(place.serve_nodes)
        if first and "port" in first:
            return place.train_nodes, place.node - place.serve_nodes, f"{first['address']}:{first['port']}"
        time.sleep(LOOK_S)
    raise EngineError(f"node {place.node}: {attempt.lost() or 'the first training node did not come up'}")


def _await_others(attempt: Attempt) -> None:
    deadline = time.monotonic() + attempts.JOIN_S
    while not attempt.ended(range(1, attempt.place.nodes)):
        if lost := attempt.lost():
            raise EngineError(lost)
        if time.monotonic() > deadline:
            raise EngineError(
                f"another node has not ended {attempts.JOIN_S:.0f} s after this one: see {_logs(attempt)}"
            )
        time.sleep(LOOK_S)


def _prepare(run: Path, model: str, steps: int) -> None:
    """Brings the folder to where the newest checkpoint stands. Steps after it are trained again from the files that are
    there."""
    first, version, path = start_of(run, model)
    for step in range(first):
        if not (run / "rollouts" / f"step_{step:05d}.trained.json").exists():
            raise EngineError(
                f"{run}: the checkpoint has step {step}, but its trained.json is missing: the folder is damaged, take "
                "another `run:` folder"
            )
    stored = len(list((run / "rollouts").glob("step_*.parquet")))
    if stored > steps:
        raise ConfigError(
            f"training.steps={steps}, but the agents have worked for {stored} steps: every step must be trained, so "
            f"give at least {stored}"
        )
    for answer in (run / "rollouts").glob("step_*.trained.json"):
        if int(answer.name[5:10]) >= first:
            answer.unlink()
    if first < (read_json(run / "summary.json") or {"steps": 0})["steps"]:
        raise ConfigError(
            f"{run}: done, but its last checkpoint is gone, so it can't go on to training.steps={steps}: "
            "take another `run:` folder"
        )
    if first < steps:
        resume.keep_end(run, first)
    for path_of_attempt in [
        *run.glob("policy/*.json"),
        *run.glob("infrastructure.json"),
        *run.glob("rollouts/**/*.tmp"),
    ]:
        path_of_attempt.unlink()
    write_json(
        run / "policy" / "current.json",
        {"version": version, "step": first, "path": path, "path_version": version, "live": True, "proven": True},
    )


def _updates(run: Path) -> int:
    """Of the optimizer, so far."""
    return (read_json(run / "policy" / "current.json") or {"step": 0})["step"]


def _status(run: Path, state: str, attempt: int, reason: str = "") -> None:
    recoveries = list(ledger.rows(run / "policy" / "recoveries.jsonl"))[-KEPT_RECOVERIES:]
    status = {
        "state": state,
        "attempt": attempt,
        "step": _updates(run),
        "pid": os.getpid(),
        "reason": reason,
        "recoveries": recoveries,
    }
    if infrastructure := read_json(run / "infrastructure.json"):
        status["infrastructure_errors"] = infrastructure
    if status != read_json(run / "status.json"):
        write_json(run / "status.json", status)


def _spawn(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(
            [*ends_with_parent(signal.SIGTERM), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


class _Lines:
    """What the user sees of the trainer's log, as it grows."""

    def __init__(self, log: Path):
        self._log, self._at = log, 0

    def show(self) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._at)
            whole, end, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + len(end)
        for line in whole.decode(errors="replace").split("\n"):
            if line.startswith(("step ", "weight update", "vLLM is")):
                print(line, flush=True)


def _follow(children: dict[str, subprocess.Popen], run: Path, attempt: Attempt, stop: list) -> None:
    """Until this node's programs have ended. After a wish to stop the trainer ends by itself, with a checkpoint; then
    nobody needs the rollouts."""
    place, lines = attempt.place, _Lines(_logs(attempt) / "trainer.log")
    while True:
        codes = {name: child.poll() for name, child in children.items()}
        attempt.beat([child.pid for child in children.values()])
        if place.node == 0:
            lines.show()
            _status(run, "running", attempt.number)
        if lost := attempt.lost():
            raise EngineError(lost)
        if stop and not attempt.asked_to_stop():
            attempt.ask_to_stop()
        stopping = attempt.asked_to_stop()
        if stopping and codes.get("trainer", 0) == 0 and (place.trains or attempt.ended(place.trainers)):
            raise Stopped(f"stopped by a signal at step {_updates(run)}: the same command goes on from its checkpoint")
        for name, code in codes.items():
            if code not in (None, 0):
                log = _log(attempt, name)
                why = cause.of_log(log, code=code)
                raise CodeRepairError(
                    f"the {name} program ended with code {code}: {why}; see {log}; "
                    "the same command goes on from the newest checkpoint"
                )
        if all(code == 0 for code in codes.values()) or (place.serves and place.node and attempt.ended([0])):
            return
        time.sleep(LOOK_S)


def _end(children: dict[str, subprocess.Popen]) -> None:
    """SIGTERM to each group, then SIGKILL to what is left. The rollout program ends vLLM; if it can't any more, the
    kernel does."""
    for sent, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, 5.0)):
        for child in children.values():
            if child.poll() is None:
                os.killpg(child.pid, sent)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and any(child.poll() is None for child in children.values()):
            time.sleep(0.05)
