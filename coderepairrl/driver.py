"""One machine, two programs: starts the rollout process and the trainer's ranks, watches both, ends all by their process groups."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from coderepairrl.config import dump
from coderepairrl.errors import CodeRepairError, ConfigError
from coderepairrl.launch import ends_with_parent, ranks_command, ranks_environment
from coderepairrl.policy import write_json
from coderepairrl.provenance import provenance
from coderepairrl.summary import write_summary

PATIENCE_S = 30.0  # for a program to end by itself after SIGTERM


def drive(config, run: Path, arguments: list[str]) -> None:
    """Raises CodeRepairError with the reason when one of the two programs fails; status.json holds it as well."""
    if (run / "summary.json").exists():
        print(f"{run}: done already, see {run / 'summary.json'}; another run needs another `run:` folder")
        return
    if not (Path(config.model) / "config.json").exists():
        raise ConfigError(f"{config.model}: no model there (no config.json): make it first (scripts/make_policy.py, scripts/train_sft.py), or correct model:")
    attempt = 1 + len(list((run / "logs").glob("attempt_*")))
    logs = run / "logs" / f"attempt_{attempt}"
    for folder in (logs, run / "rollouts", run / "checkpoints", run / "policy"):
        folder.mkdir(parents=True, exist_ok=True)
    dump(config, run / "config.yaml")
    write_json(run / "provenance.json", provenance(arguments))
    write_json(run / "status.json", {"state": "running", "attempt": attempt, "pid": os.getpid(), "reason": ""})
    children: dict[str, subprocess.Popen] = {}
    try:
        _forget_unfinished(run)
        program = [sys.argv[0], *arguments]
        os.environ["CODEREPAIRRL_RUN"] = str(run.resolve())  # every process of a run can be told by it
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        children["rollout"] = _spawn([sys.executable, *program, "role=rollout"], logs / "rollout.log", attempt, environment)
        children["trainer"] = _spawn(ranks_command(config.training.ranks, [*program, "role=train"]), logs / "trainer.log", attempt,
                                     ranks_environment(config.training.threads))
        _follow(children, run, logs)
        write_summary(run)
        write_json(run / "status.json", {"state": "done", "attempt": attempt, "reason": ""})
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            reason = "stopped by the user or a signal: the same command goes on from the newest checkpoint"
        else:
            reason = str(error) if isinstance(error, CodeRepairError) else f"{type(error).__name__}: {error}"
        write_json(run / "status.json", {"state": "failed", "attempt": attempt, "reason": reason})
        raise
    finally:
        _end(children)


def _forget_unfinished(run: Path) -> None:
    """Files of steps that no checkpoint holds: their groups run again."""
    checkpoints = sorted((run / "checkpoints").glob("step_*"))
    done = int(checkpoints[-1].name.removeprefix("step_")) if checkpoints else 0
    for path in (run / "rollouts").glob("step_*"):
        if int(path.name[5:10]) >= done:
            path.unlink()
    for path in run.glob("policy/*.json"):
        path.unlink()  # not highest_version: versions are never used twice


def _spawn(command: list[str], log: Path, attempt: int, environment: dict[str, str]) -> subprocess.Popen:
    environment = environment | {"CODEREPAIRRL_ATTEMPT": str(attempt), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        return subprocess.Popen([*ends_with_parent(signal.SIGTERM), *command], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)


def _follow(children: dict[str, subprocess.Popen], run: Path, logs: Path) -> None:
    """Shows the trainer's step lines; returns when both programs have ended well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seen = 0
    while True:
        codes = {name: child.poll() for name, child in children.items()}
        lines = [line for line in (logs / "trainer.log").read_text(errors="replace").splitlines() if line.startswith(("step ", "weight update", "vLLM is"))]
        for line in lines[seen:]:
            print(line, flush=True)
        seen = len(lines)
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
