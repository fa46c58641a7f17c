"""A machine that breaks ends the run with its cause, and nothing of it is trained, counted as the agent's, or kept from
a later attempt."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from books_helpers import MODULE, task, trajectory
from hypothesis import given
from hypothesis import strategies as st
from rollout_helpers import TASKS, folder, rollout_of

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json
from coderepairrl.rollout import infrastructure, ledger, trajectory_files
from coderepairrl.rollout.buffer import Books
from coderepairrl.rollout.infrastructure import (
    WINDOW,
    InfrastructureErrors,
    Unforeseen,
    alike,
    commonest,
    line,
    refuse_broken,
)
from coderepairrl.rollout.scheduler import Admission
from coderepairrl.run import driver
from coderepairrl.types import Outcome


def broken(member, detail="SandboxError: no space in /tmp/x1"):
    return dataclasses.replace(
        member, outcome=Outcome.INFRASTRUCTURE_ERROR, outcome_detail=detail, verdict=None, rewards={}, reward=0.0
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("SandboxError: no space in /tmp/a/b", "SandboxError: no space in /dev/shm/c", True),
        ("vLLM answered 400: 1031 tokens", "vLLM answered 400: 2212 tokens", True),
        ("no sandbox 3f2a9c of functions-train-3", "no sandbox 77b01e of functions-train-12", True),
        ("cannot connect to 127.0.0.1:4001\n", "cannot  connect to 127.0.0.1:4377", True),
        ("the sandbox did not start", "the gateway did not answer", False),
    ],
)
def test_what_differs_by_numbers_ids_and_paths_is_one_cause(one, other, same):
    assert (alike(one) == alike(other)) is same
    assert commonest(["something else entirely", one, other, "and", other]) == " ".join(
        (one if same else other).split()
    )


def test_a_cause_is_one_short_line():
    assert "\n" not in commonest(["a\nb " + "c" * 1000]) and len(commonest(["a\nb " + "c" * 1000])) == 300
    assert commonest([""]) == "no cause is known"


@given(st.lists(st.booleans(), max_size=200), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_it_stops_at_the_first_window_with_too_many(tmp_path_factory, ends, most):
    errors, wanted = InfrastructureErrors(tmp_path_factory.getbasetemp(), most), None
    for i in range(WINDOW, len(ends) + 1):
        if wanted is None and sum(ends[i - WINDOW : i]) > most * WINDOW:
            wanted = i
    member = trajectory("g", 0, "train", 0.0, ())
    for i, bad in enumerate(ends, 1):
        end = broken(member) if bad else member
        if bad:
            errors.tried(end.outcome_detail)
        if i == wanted:
            with pytest.raises(EngineError, match="of the last 64 episodes.*no space in.*max_infrastructure_share"):
                errors.ended(end)
            return
        errors.ended(end)
    assert wanted is None and (errors.said() is None) == (not any(ends))


def test_only_where_all_are_broken_it_is_refused():
    refuse_broken("step 3", [])
    refuse_broken("step 3", ["a", None])
    with pytest.raises(EngineError, match="step 3: all 3 episodes .* most often: b 1; mend") as caught:
        refuse_broken("step 3", ["a", "b 1", "b 2"])
    assert "\n" not in str(caught.value)


def test_status_and_step_line_say_it(tmp_path):
    run = folder(tmp_path)
    errors = InfrastructureErrors(run, 1.0)
    driver._status(run, "running", 1)
    assert "infrastructure_errors" not in read_json(run / "status.json")
    for detail in ("no space 1", "no answer", "no space 2"):
        errors.tried(detail)
    errors.ended(broken(trajectory("g", 0, "train", 0.0, ())))
    errors.ended(trajectory("g", 1, "train", 0.0, ()))
    driver._status(run, "running", 1)
    said = {"errors": 3, "share": 0.5, "episodes": 2, "cause": "no space 1"}
    assert read_json(run / "status.json")["infrastructure_errors"] == said
    assert line(said) == "infrastructure errors 3 (50% of the last 2 episodes), most often: no space 1"
    driver._prepare(run, "model", 4)  # another attempt
    driver._status(run, "running", 2)
    assert "infrastructure_errors" not in read_json(run / "status.json")


def met(unforeseen, do) -> None:
    try:
        do()
    except Exception as error:
        unforeseen.met(error, "episode t of task u")


def test_an_error_of_the_programs_own_is_logged_once_a_kind_and_counted_under_its_name(tmp_path, caplog):
    """A kind is an error's class and the program's innermost line that it went through, whatever it says."""
    errors = InfrastructureErrors(folder(tmp_path), 1.0)
    own = errors.unforeseen
    for number in range(3):
        met(own, lambda number=number: ledger.Ledger(Path(f"/proc/none_{number}/ledger.jsonl")))
        met(own, lambda: commonest([]))
    (file_kind, files), (index_kind, indices) = own.counts.items()
    assert file_kind.startswith("FileNotFoundError at coderepairrl/rollout/ledger.py:") and files == 3
    assert index_kind.startswith("IndexError at coderepairrl/rollout/infrastructure.py:") and indices == 3
    assert len(caplog.records) == 2 and all(record.exc_info for record in caplog.records)
    assert errors.said() is None  # no try of an episode ended so
    errors.tried("IndexError: list index out of range")
    errors.ended(broken(trajectory("g", 0, "train", 0.0, ()), "IndexError: list index out of range"))
    assert read_json(tmp_path / "infrastructure.json")["unforeseen"] == {file_kind: 3, index_kind: 3}
    assert f"6 of them this program's own, most often {file_kind}: see rollout.log" in line(errors.said())


def test_an_error_that_went_through_none_of_the_programs_lines_has_its_own(caplog):
    own = Unforeseen()
    met(own, lambda: 1 // 0)
    (kind,) = own.counts
    assert kind.startswith("ZeroDivisionError at ") and kind.rpartition(":")[0].endswith("test_infrastructure.py")


def test_a_step_that_the_machine_ended_is_no_step_and_its_tasks_run_again(tmp_path):
    run, names = folder(tmp_path), []
    books = Books(run, Admission(2), 1, ["tests"])
    for position in range(2):
        names.append(books.admit(position, task(position), 0, 2))
        books.finish(names[-1], [broken(trajectory(names[-1], i, "train", 0.0, (0,))) for i in range(2)])
    with pytest.raises(EngineError, match="step 0: all 4 episodes"):
        books.store_step({})
    books.close()
    assert not list(run.glob("rollouts/**/*.parquet*"))
    again = Books(run, Admission(2), 2, ["tests"])
    for position in range(2):
        assert again.admission.next_position(0, 1) == position
        names.append(again.admit(position, task(position), 0, 2))
        again.finish(
            names[-1],
            [trajectory(names[-1], 0, "train", 1.0, (0,)), broken(trajectory(names[-1], 1, "train", 0.0, (0,)))],
        )
    assert again.store_step({})["outcomes"] == {"submitted": 2, "infrastructure_error": 2}
    again.close()
    ends = {row["group"]: row["reason"] for row in ledger.rows(run / "ledger.jsonl") if row["event"] == "dropped"}
    assert ends == dict.fromkeys(names[:2], "attempt_ended")
    assert all(": 0 ends" in violation for violation in MODULE.audit(run)), "all else is right"


def test_an_episode_that_the_programs_own_error_ends_is_counted_as_that(tmp_path, monkeypatch, caplog):
    async def breaks(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr("coderepairrl.rollout.episode.compute", breaks)

    async def scenario():
        async with rollout_of(folder(tmp_path), try_environments=False) as rollout:
            await rollout.produce(1)

    with pytest.raises(EngineError, match="step 0: all 4 episodes .* KeyError: 'x'"):
        asyncio.run(scenario())
    said = read_json(tmp_path / "infrastructure.json")
    assert list(said["unforeseen"].values()) == [4] and said["errors"] == 4
    assert [*said["unforeseen"]][0].startswith("KeyError at coderepairrl/rollout/episode.py:")
    assert sum(record.name == infrastructure.__name__ for record in caplog.records) == 1


SILENT = {
    split: [
        dataclasses.replace(
            own,
            environment=dataclasses.replace(own.environment, name="silent", test_command=("false", "{canary_module}")),
        )
        for own in tasks
    ]
    for split, tasks in TASKS.items()
}  # tests that report nothing: the environment's fault


def test_a_run_on_a_broken_machine_stops_before_its_first_step(tmp_path, monkeypatch):
    async def scenario(**settings):
        async with rollout_of(folder(tmp_path), SILENT, try_environments=False, **settings) as rollout:
            await rollout.produce(10)

    with pytest.raises(
        EngineError, match="step 0: all 4 episodes ended as infrastructure errors, most often: environment: "
    ):
        asyncio.run(scenario())
    monkeypatch.setattr(infrastructure, "WINDOW", 6)
    with pytest.raises(EngineError, match="6 of the last 6 episodes"):
        asyncio.run(scenario(groups_per_step=8, attempt=2))


def test_an_evaluation_on_a_broken_machine_is_none_and_is_made_again(tmp_path):
    async def scenario(tasks, attempt):
        async with rollout_of(folder(tmp_path), tasks, attempt, try_environments=False) as rollout:
            await rollout.evaluate("before", updates=0)

    with pytest.raises(EngineError, match="evaluation before: all 3 episodes"):
        asyncio.run(scenario(SILENT, 1))
    asyncio.run(scenario(TASKS, 2))
    asyncio.run(scenario(SILENT, 3))  # it is done: nothing runs
    assert trajectory_files.read_stats(tmp_path / "rollouts" / "eval_before.parquet")["evaluation"]["pass_rate"] == 1.0
    assert MODULE.audit(tmp_path) == []


def test_an_episode_whose_sandbox_breaks_is_the_machines(tmp_path):
    """Neither the agent's error nor a reward of 0: it is tried again, and then masked."""

    async def scenario():
        async with rollout_of(folder(tmp_path), infrastructure_retries=1) as rollout:
            rollout.groups.services = dataclasses.replace(
                rollout.groups.services, sandbox=rollout.config.sandbox.model_copy(update={"scratch": "/proc/none"})
            )
            return await rollout.groups._with_retries(
                "a1-p0", TASKS["train"][0], 0, "train", rollout._training
            ), rollout._broken.said()

    end, said = asyncio.run(scenario())
    assert "unforeseen" not in said
    assert (
        end.outcome == Outcome.INFRASTRUCTURE_ERROR and end.verdict is None and end.rewards == {} and end.attempt == 1
    )
    assert said["errors"] == 2 and said["share"] == 1.0 and said["cause"] == end.outcome_detail
    rows = [row for row in ledger.rows(tmp_path / "ledger.jsonl") if row["event"] == "infrastructure_error"]
    assert [row["attempt"] for row in rows] == [0, 1]
