"""The rollout process is killed between any two of its writes; the next attempts finish the run, and its books are
clean."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from books_helpers import MODULE, ROOT, task, trajectory

from coderepairrl.errors import ConfigError, EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import buffer as books_module
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.buffer import Books
from coderepairrl.rollout.scheduler import Admission
from coderepairrl.run import attempt as attempts
from coderepairrl.run import driver, resume
from coderepairrl.run.attempt import Place
from coderepairrl.run.summary import write_summary
from coderepairrl.types import Outcome

STEPS, GROUPS, MEMBERS = 4, 2, 2


class Killed(BaseException):
    """Not to be caught by what is tested."""


class Killer:
    """Counts the writes of the books, and kills before the one of the given number."""

    def __init__(self, monkeypatch):
        self.writes, self.at = 0, None
        for owner, name in (
            (ledger.Ledger, "write"),
            (trajectory_files, "write"),
            (trajectory_files, "write_temporary"),
            (trajectory_files, "publish"),
            (Path, "unlink"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function):
        def counted(*arguments, **named):
            self.writes += 1
            if self.writes == self.at:
                raise Killed
            return function(*arguments, **named)

        return counted


def train(run):
    """What a trainer does with the next step's file: versions.jsonl, the answer, metrics, every second step a
    checkpoint, current.json."""
    current = read_json(run / "policy" / "current.json")
    step = current["step"]
    if not (run / "rollouts" / f"step_{step:05d}.parquet").exists():
        return
    groups = {}
    for t in trajectory_files.read(run / "rollouts" / f"step_{step:05d}.parquet")[0]:
        groups.setdefault(t.group_id, []).append(t)
    answer = {}
    for group, members in groups.items():
        tokens = books_module.sampled_tokens(members)
        answer[group] = (
            {"trained": tokens, "masked": {}}
            if books_module.teaches(members)
            else {"trained": 0, "masked": {"zero_variance": tokens}}
        )
    versions = run / "policy" / "versions.jsonl"
    version = 1 + max(row["version"] for row in ledger.rows(versions))
    with versions.open("a") as file:
        file.write(json.dumps({"version": version, "step": step + 1}) + "\n")
    seconds = dict.fromkeys(("rollout_s", "train_s", "update_s", "step_s"), 1.0)
    with (run / "metrics.jsonl").open("a") as file:
        tokens = sum(book["trained"] for book in answer.values())
        file.write(
            json.dumps({"step": step, "tokens_trained": tokens, "failed_updates": 0, "logprob_gap": 0.0} | seconds)
            + "\n"
        )
    write_json(run / "rollouts" / f"step_{step:05d}.trained.json", {"groups": answer, "version": version})
    if step % 2:
        folder = run / "checkpoints" / f"step_{step + 1:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "state.json", {"step": step + 1, "version": version})
    write_json(run / "policy" / "current.json", {"version": version, "step": step + 1, "path": "", "live": True})


def attempt(run, number, max_staleness, max_refills, kill=lambda: None):
    """The rollout process from its beginning to the end of the run, with a trainer beside it."""
    chance = random.Random(number)
    driver._prepare(run, "model", STEPS)
    kill()
    books = Books(run, Admission(GROUPS, max_staleness, max_refills), number, ["tests"])
    try:
        if not (run / "rollouts" / "eval_before.parquet").exists():
            groups = [books.admit_evaluation("before", i, task(i), 0, MEMBERS) for i in range(2)]
            books.store_evaluation(
                "before",
                {
                    group: [trajectory(group, i, "heldout", float(i), (0, 0)) for i in range(MEMBERS)]
                    for group in groups
                },
                {},
            )
        born, beside, looked_at, began = {}, [], 0, 0
        while books.booked < STEPS:
            current = read_json(run / "policy" / "current.json")
            name = f"step_{looked_at:05d}"
            if beside and chance.random() < 0.3:  # an evaluation that spans updates is over
                versions = (began, current["version"])
                books.store_evaluation(
                    name,
                    {
                        group: [trajectory(group, i, "heldout", 1.0, versions) for i in range(MEMBERS)]
                        for group in beside
                    },
                    {},
                )
                beside = []
            if not beside and 0 < current["step"] < STEPS and current["step"] > looked_at:
                looked_at, began = current["step"], current["version"]
                if not (run / "rollouts" / f"eval_step_{looked_at:05d}.parquet").exists():
                    beside = [
                        books.admit_evaluation(f"step_{looked_at:05d}", i, task(i), began, MEMBERS) for i in range(2)
                    ]
            while (position := books.admission.next_position(current["step"], STEPS)) is not None:
                born[books.admit(position, task(position), current["version"], MEMBERS)] = current["version"]
            running = [group for group, entry in books.admission.live.items() if not entry.finished]
            if running and chance.random() < 0.8:
                group = chance.choice(running)
                flat = chance.random() < 0.4
                books.finish(
                    group,
                    [
                        trajectory(group, i, "train", float(i and not flat), (born[group], current["version"]))
                        for i in range(MEMBERS)
                    ],
                )
            while books.store_step({}):
                pass
            if chance.random() < 0.5:
                train(run)
            books.book_training()
        if beside:
            books.store_evaluation(
                f"step_{looked_at:05d}",
                {group: [trajectory(group, 0, "heldout", 1.0, (began,))] * MEMBERS for group in beside},
                {},
            )
    finally:
        books.close()


@pytest.fixture
def run(tmp_path):
    for folder in ("rollouts/buffer", "policy", "checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "policy" / "versions.jsonl").write_text('{"version": 0, "step": 0}\n')
    return tmp_path


def finished(run, max_staleness, max_refills):
    (run / "config.yaml").write_text(
        yaml.safe_dump({"rollout": {"max_staleness": max_staleness, "max_refills": max_refills}})
    )
    summary = write_summary(run)
    assert MODULE.audit(run) == []
    assert summary["steps"] == STEPS and summary["tokens_trained"] > 0
    assert not list((run / "rollouts" / "buffer").iterdir()) and not list(run.glob("rollouts/**/*.tmp"))
    return list(ledger.rows(run / "ledger.jsonl"))


@pytest.mark.parametrize(("max_staleness", "max_refills"), [(0, 0), (2, 0), (1, 1), (3, 2)])
def test_an_undisturbed_run_is_clean(run, max_staleness, max_refills):
    attempt(run, 1, max_staleness, max_refills)
    rows = finished(run, max_staleness, max_refills)
    assert list(run.glob("rollouts/eval_step_*.parquet"))
    assert sum(row["event"] == "trained" for row in rows) == STEPS * GROUPS
    steps = {row["version"]: row["step"] for row in ledger.rows(run / "policy" / "versions.jsonl")}
    # the version that the training made
    assert all(steps[row["version"]] == row["step"] + 1 for row in rows if row["event"] == "trained")
    assert any(row.get("reason") == "zero_variance" for row in rows) == (max_refills > 0)


@pytest.mark.parametrize("part", range(6))
def test_killed_between_any_two_writes(run, monkeypatch, part):
    """Every sixth write, from another first one: the attempts that follow are killed a little later each, until one
    comes through."""
    killer, number, at = Killer(monkeypatch), 0, 1 + part
    while True:
        number += 1

        def kill():
            killer.writes, killer.at = 0, at

        try:
            attempt(run, number, 2, 1, kill)
            break
        except Killed:
            at += 6
    assert number > 3
    killer.at = None
    rows = finished(run, 2, 1)
    assert any(row.get("reason") == "attempt_ended" for row in rows)


@pytest.mark.parametrize("at", range(1, 11))
def test_an_end_that_was_killed_and_is_gone_on_with_has_one_end(run, monkeypatch, at):
    """The last evaluation is killed before each of its writes; then the run gets more steps before it gets another
    evaluation."""
    killer = Killer(monkeypatch)
    books = Books(run, Admission(1, 0, 1), 1, ["tests"])
    groups = [books.admit_evaluation("after", i, task(i), 1, MEMBERS) for i in range(2)]
    killer.writes, killer.at = 0, at
    try:
        books.store_evaluation(
            "after",
            {group: [trajectory(group, i, "heldout", 1.0, [0]) for i in range(MEMBERS)] for group in groups},
            {},
        )
    except Killed:
        pass
    books.close()
    killer.at = None
    resume.keep_end(run, 20)
    Books(run, Admission(1, 0, 1), 2, ["tests"]).close()
    rows = list(ledger.rows(run / "ledger.jsonl"))
    kept = run / "rollouts" / "eval_step_00020.parquet"
    for group in groups:
        (end,) = [row for row in rows if row["group"] == group and row["event"] == "dropped"]
        assert end["reason"] == ("evaluation" if kept.exists() else "attempt_ended")
        files = [row["file"] for row in rows if row["group"] == group and row["event"] == "stored"]
        assert files[-1:] == [kept.name] * kept.exists()


@pytest.mark.parametrize(
    ("outcomes", "reason"), [("si", "zero_variance"), ("ii", "infrastructure_error"), ("ss", "zero_variance")]
)
def test_a_dropped_group_is_one_of_broken_machines_only_where_all_broke(outcomes, reason, tmp_path):
    books = Books(tmp_path, Admission(1, 0, 1), 1, ["tests"])
    group = books.admit(0, task(0), 0, 2)
    kinds = {"s": Outcome.SUBMITTED, "i": Outcome.INFRASTRUCTURE_ERROR}
    books.finish(
        group,
        [replace(trajectory(group, i, "train", 0.0, [0]), outcome=kinds[letter]) for i, letter in enumerate(outcomes)],
    )
    books.close()
    (dropped,) = [row for row in ledger.rows(tmp_path / "ledger.jsonl") if row["event"] == "dropped"]
    assert (dropped["reason"], dropped["tokens"]) == (reason, 4)


def test_an_evaluation_that_cannot_be_used_has_one_end_and_no_file(run):
    books = Books(run, Admission(1, 0, 1), 1, ["tests"])
    group = books.admit_evaluation("step_00001", 0, task(0), 1, 2)
    books.drop_evaluation({group: [trajectory(group, i, "heldout", 1.0, [0]) for i in range(2)]})
    books.close()
    rows = [row for row in ledger.rows(run / "ledger.jsonl") if row["group"] == group]
    assert [row["event"] for row in rows] == ["admitted", "finished", "graded", "dropped"]
    assert (rows[-1]["reason"], rows[-1]["tokens"]) == ("attempt_ended", rows[1]["sampled"]) and not list(
        run.glob("rollouts/eval_*")
    )
    Books(run, Admission(1, 0, 1), 2, ["tests"]).close()  # a later attempt has nothing to add
    assert [row for row in ledger.rows(run / "ledger.jsonl") if row["group"] == group] == rows


def test_a_broken_machine_counts_in_no_rate():
    whole = [trajectory("g", i, "train", float(i), [0]) for i in range(2)]
    broken = replace(
        trajectory("g", 2, "train", 0.0, [0]), outcome=Outcome.INFRASTRUCTURE_ERROR, verdict=None, rewards={}
    )
    alone, beside = (books_module.statistics(members, ["tests"]) for members in (whole, [*whole, broken]))
    assert all(alone[name] == beside[name] for name in ("reward", "pass_rate", "parts")) and alone["pass_rate"] == 0.5
    assert beside["outcomes"] == {"submitted": 2, "infrastructure_error": 1} and beside["tokens"] == alone["tokens"] + 2


def test_a_step_trained_again_must_come_out_as_before(run):
    attempt(run, 1, 1, 0)
    answer = run / "rollouts" / "step_00002.trained.json"
    report = read_json(answer)
    next(iter(report["groups"].values()))["trained"] += 1
    write_json(answer, report)
    books = Books(run, Admission(GROUPS, 1, 0), 2, ["tests"])
    before = (run / "ledger.jsonl").read_bytes()
    with pytest.raises(EngineError, match="step 2 was trained again"):
        books.book_training()
    books.close()
    assert (run / "ledger.jsonl").read_bytes() == before


def test_the_folder_is_brought_to_where_the_checkpoint_stands(run):
    attempt(run, 1, 1, 0)
    for step in (3, 4):
        (run / "checkpoints" / f"step_{step:05d}").mkdir(exist_ok=True)
    write_json(run / "checkpoints" / "step_00003" / "state.json", {"step": 3, "version": 7})
    (run / "checkpoints" / "step_00004" / "state.json").unlink()
    (run / "checkpoints" / "step_00004").rename(run / "checkpoints" / "step_00004.tmp")  # died while it was written
    for name in ("export_wanted.json", "engine_0.json"):
        write_json(run / "policy" / name, {})
    (run / "rollouts" / "buffer" / "x.parquet.tmp").write_bytes(b"half")
    driver._prepare(run, "model", STEPS)
    assert sorted(path.name for path in run.glob("rollouts/*.trained.json")) == [
        f"step_{n:05d}.trained.json" for n in range(3)
    ]
    assert sorted(path.name for path in run.glob("rollouts/step_*.parquet")) == [
        f"step_{n:05d}.parquet" for n in range(4)
    ]
    assert sorted(path.name for path in (run / "policy").iterdir()) == ["current.json", "versions.jsonl"]
    path = str(run / "checkpoints" / "step_00003" / "policy")
    assert read_json(run / "policy" / "current.json") == {
        "version": 7,
        "step": 3,
        "path": path,
        "path_version": 7,
        "live": True,
        "proven": True,
    }
    assert not list(run.glob("rollouts/**/*.tmp"))
    (run / "rollouts" / "step_00001.trained.json").unlink()
    with pytest.raises(EngineError, match="the checkpoint has step 1"):
        driver._prepare(run, "model", STEPS)


def test_a_run_cannot_be_made_shorter_than_what_its_agents_did(run):
    attempt(run, 1, 1, 0)
    with pytest.raises(ConfigError, match="give at least 4"):
        driver._prepare(run, "model", STEPS - 1)


def test_a_run_folder_is_held_until_the_last_process_of_an_attempt_has_ended(run, monkeypatch):
    monkeypatch.setattr(attempts, "PATIENCE_S", 0.5)
    program = (
        f"from coderepairrl.run.attempt import Place, lead; from pathlib import Path; import subprocess, sys; first = "
        f"lead(Path({str(run)!r}), Place()); "
        "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, start_new_session=True); "
        "first.beat([child.pid]); print(child.pid, flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    child = int(first.stdout.readline())
    for end in (lambda: None, lambda: (first.kill(), first.wait())):
        end()
        with pytest.raises(EngineError, match="in use by another process"):
            attempts.lead(run, Place())
    number = read_json(run / "attempt.json")["attempt"]
    subprocess.run(["kill", str(child)], check=True)
    monkeypatch.setattr(attempts, "PATIENCE_S", 60.0)
    assert attempts.lead(run, Place()).number == number + 1


def test_status_keeps_the_last_recoveries(run):
    write_json(run / "policy" / "current.json", {"version": 9, "step": 6})
    with (run / "policy" / "recoveries.jsonl").open("w") as file:
        for number in range(30):
            file.write(json.dumps({"time": float(number), "what": f"vLLM restarted: cause {number}"}) + "\n")
        file.write('{"time": 30.0, "wh')  # being written
    driver._status(run, "failed", 3, "the trainer program ended with code 1")
    status = read_json(run / "status.json")
    assert (status["state"], status["attempt"], status["step"], status["reason"]) == (
        "failed",
        3,
        6,
        "the trainer program ended with code 1",
    )
    assert [row["time"] for row in status["recoveries"]] == [float(n) for n in range(10, 30)]
