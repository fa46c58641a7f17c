"""One machine, two programs: starts the rollout process and the trainer's ranks, watches both, ends all by their process groups.

status.json: {"state": running | done | failed, "attempt", "step": optimizer updates so far, "reason" of the end, "recoveries": the
last of {"time", "what"}: each restart of vLLM with its cause, over all attempts}.
"""
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from coderepairrl import ledger
from coderepairrl.config import dump
from coderepairrl.errors import CodeRepairError, ConfigError, EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.launch import ends_with_parent, ranks_command, ranks_environment
from coderepairrl.provenance import provenance
from coderepairrl.summary import write_summary

PATIENCE_S = 30.0  # for a program to end by itself after SIGTERM
LOCK_S = 60.0  # for the programs of a killed attempt
KEPT_RECOVERIES = 20


def start_of(run: Path, model: str) -> tuple[int, int, str]:
    """(first step to do, version of the weights to start from, their folder): from the newest checkpoint, or from the beginning."""
    checkpoints = sorted(path for path in (run / "checkpoints").glob("step_*") if path.suffix != ".tmp")
    if not checkpoints:
        return 0, 0, model
    state = read_json(checkpoints[-1] / "state.json")
    return state["step"], state["version"], str(checkpoints[-1] / "policy")


def drive(config, run: Path, arguments: list[str]) -> None:
    """Raises CodeRepairError with the reason when one of the two programs fails; status.json holds it as well."""
    if not (run / "summary.json").exists() and not (Path(config.model) / "config.json").exists():
        raise ConfigError(f"{config.model}: no model there (no config.json): make it first (scripts/make_policy.py, scripts/train_sft.py), or correct model:")
    for folder in ("logs", "rollouts/buffer", "checkpoints", "policy"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    lock = _lock(run)
    if (run / "summary.json").exists():
        print(f"{run}: done already, see {run / 'summary.json'}; another run needs another `run:` folder")
        return
    attempt = 1 + max((int(path.name.removeprefix("attempt_")) for path in (run / "logs").glob("attempt_*")), default=0)  # never used twice: it is in groups' names
    logs = run / "logs" / f"attempt_{attempt}"
    logs.mkdir()
    dump(config, run / "config.yaml")
    write_json(run / "provenance.json", provenance(arguments))
    children: dict[str, subprocess.Popen] = {}
    try:
        _prepare(run, config.model, config.training.steps)
        _status(run, "running", attempt)
        program = [sys.argv[0], *arguments]
        os.environ["CODEREPAIRRL_RUN"] = str(run.resolve())  # every process of a run can be told by it
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CODEREPAIRRL_ATTEMPT": str(attempt), "PYTHONUNBUFFERED": "1"}
        children["rollout"] = _spawn([sys.executable, *program, "role=rollout"], logs / "rollout.log", environment, lock)
        children["trainer"] = _spawn(ranks_command(config.training.ranks, [*program, "role=train"]), logs / "trainer.log",
                                     environment | ranks_environment(config.training.threads, config.training.devices), lock)
        _follow(children, run, logs, attempt)
        write_summary(run)
        _status(run, "done", attempt)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            reason = "stopped by the user or a signal: the same command goes on from the newest checkpoint"
        else:
            reason = str(error) if isinstance(error, CodeRepairError) else f"{type(error).__name__}: {error}"
        _status(run, "failed", attempt, reason)
        raise
    finally:
        _end(children)


def _lock(run: Path) -> int:
    """Holds the run folder. The two programs inherit it: what a killed attempt has left must have ended before the next begins. EngineError."""
    lock = os.open(run / "lock", os.O_CREAT | os.O_RDWR)
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EngineError(f"{run} is in use by another process: end it, or wait until it has ended, then start the same command again") from None
            time.sleep(0.2)


def _prepare(run: Path, model: str, steps: int) -> None:
    """Brings the folder to where the newest checkpoint stands. Steps after it are trained again from the files that are there."""
    first, version, path = start_of(run, model)
    for step in range(first):
        if not (run / "rollouts" / f"step_{step:05d}.trained.json").exists():
            raise EngineError(f"{run}: the checkpoint has step {step}, but its trained.json is missing: the folder is damaged, take another `run:` folder")
    stored = len(list((run / "rollouts").glob("step_*.parquet")))
    if stored > steps:
        raise ConfigError(f"training.steps={steps}, but the agents have worked for {stored} steps: every step must be trained, so give at least {stored}")
    for answer in (run / "rollouts").glob("step_*.trained.json"):
        if int(answer.name[5:10]) >= first:
            answer.unlink()
    if first < steps:
        (run / "rollouts" / "eval_after.parquet").unlink(missing_ok=True)
    for path_of_attempt in [*run.glob("policy/*.json"), *run.glob("rollouts/**/*.tmp")]:
        path_of_attempt.unlink()
    write_json(run / "policy" / "current.json", {"version": version, "step": first, "path": path, "path_version": version, "live": True})


def _status(run: Path, state: str, attempt: int, reason: str = "") -> None:
    step = (read_json(run / "policy" / "current.json") or {"step": 0})["step"]
    recoveries = list(ledger.rows(run / "policy" / "recoveries.jsonl"))[-KEPT_RECOVERIES:]
    status = {"state": state, "attempt": attempt, "step": step, "pid": os.getpid(), "reason": reason, "recoveries": recoveries}
    if status != read_json(run / "status.json"):
        write_json(run / "status.json", status)


def _spawn(command: list[str], log: Path, environment: dict[str, str], lock: int) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen([*ends_with_parent(signal.SIGTERM), *command], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                start_new_session=True, pass_fds=[lock])


def _follow(children: dict[str, subprocess.Popen], run: Path, logs: Path, attempt: int) -> None:
    """Shows the trainer's step lines and keeps status.json; returns when both programs have ended well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seen = 0
    while True:
        codes = {name: child.poll() for name, child in children.items()}
        lines = [line for line in (logs / "trainer.log").read_text(errors="replace").splitlines() if line.startswith(("step ", "weight update", "vLLM is"))]
        for line in lines[seen:]:
            print(line, flush=True)
        seen = len(lines)
        _status(run, "running", attempt)
        for name, code in codes.items():
            if code not in (None, 0):
                raise CodeRepairError(f"the {name} program ended with code {code}: {_cause(logs / f'{name}.log')}; see {logs / f'{name}.log'}; the same command goes on from the newest checkpoint")
        if all(code == 0 for code in codes.values()):
            return
        time.sleep(0.2)


def _cause(log: Path) -> str:
    """The program's own one line, or the last line that names an exception."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    for wanted in (lambda line: line.startswith("error: "), lambda line: "Error" in line):
        found = [line for line in lines if wanted(line)]
        if found:
            return found[-1].removeprefix("error: ")[:500]
    return "no error in its log"


def _end(children: dict[str, subprocess.Popen]) -> None:
    """SIGTERM to each group, then SIGKILL to what is left. The rollout program ends vLLM; if it can't any more, the kernel does."""
    for sent, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, 5.0)):
        for child in children.values():
            if child.poll() is None:
                os.killpg(child.pid, sent)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and any(child.poll() is None for child in children.values()):
            time.sleep(0.05)
