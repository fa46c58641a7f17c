"""The rollout process's books: ledger.jsonl and rollouts/, written in an order that survives a kill between any two
lines.

    rollouts/buffer/GROUP.parquet    a group from the moment it is finished until its step's file is there
    rollouts/step_NNNNN.parquet      the groups of training step N
    rollouts/step_NNNNN.trained.json the trainer's answer: {"groups": {group: {"trained": n, "masked": {reason: n}}},
    "version": v}

A group's file comes before the rows that speak of it as finished, a step's file after the rows that say where its
groups are, an evaluation's before the rows that end its groups. What a later attempt finds decides: step files are
kept, buffered groups taken up, the others run again.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from pathlib import Path
from statistics import fmean

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.infrastructure import detail_of, refuse_broken
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.rollout.scheduler import ATTEMPT_ENDED, Admission
from coderepairrl.types import TASK_SET, Outcome, Task, Trajectory

MIXTURES = {"sets": "task_set", "scaffolds": "scaffold"}  # what numbers are called -> the trajectory's field


def sampled_tokens(members: Sequence[Trajectory]) -> int:
    return sum(t.sampled_tokens for t in members)


def teaches(members: Sequence[Trajectory]) -> bool:
    """Whether the rewards of a group differ; those of broken machines are none.

    What credit "turn" could still tell apart under equal rewards doesn't count: it takes a price per call, and a prompt
    that was asked at different depths.
    """
    return len({t.reward for t in members if t.outcome != Outcome.INFRASTRUCTURE_ERROR}) > 1


def statistics(trajectories: Sequence[Trajectory], parts: Sequence[str]) -> dict:
    """What metrics.jsonl says of a file's episodes. seconds: from the start of the first to the end of the last.

    Of episodes that a broken machine ended there are counts only; a mean of nothing (no episode, no tests that were
    run) is left out.
    """
    counted = [t for t in trajectories if t.outcome != Outcome.INFRASTRUCTURE_ERROR]
    means = {
        "reward": [t.reward for t in counted],
        "pass_rate": [t.verdict.resolved for t in counted if t.verdict is not None],
        "calls": [len(t.calls) for t in counted],
        "generation_s": [t.stats["generation_s"] for t in counted],
        "grading_s": [t.stats["grading_s"] for t in counted],
    }
    first = min((t.stats["started_at"] for t in trajectories), default=0.0)
    return (
        _by_part(trajectories)
        | {
            "seconds": max((t.stats["started_at"] + t.seconds for t in trajectories), default=0.0) - first,
            "outcomes": Counter(str(t.outcome) for t in trajectories),
            "tokens": sampled_tokens(trajectories),
            "parts": {part: fmean(t.rewards[part] for t in counted) for part in parts} if counted else {},
        }
        | {name: fmean(values) for name, values in means.items() if values}
    )


def _by_part(trajectories: Sequence[Trajectory]) -> dict:
    """{"sets": {name: {"groups", "reward", "pass_rate"}}, "scaffolds": the same}, of mixtures alone."""
    out: dict[str, dict[str, dict]] = {}
    for mixture, field in MIXTURES.items():
        for part in sorted({getattr(t, field) for t in trajectories} - {""}):
            own = [t for t in trajectories if getattr(t, field) == part]
            counted = [t for t in own if t.outcome != Outcome.INFRASTRUCTURE_ERROR]
            means: dict[str, list[float]] = {
                "reward": [t.reward for t in counted],
                "pass_rate": [t.verdict.resolved for t in counted if t.verdict is not None],
            }
            numbers: dict[str, float] = {"groups": len({t.group_id for t in own})}
            numbers |= {name: fmean(values) for name, values in means.items() if values}
            out.setdefault(mixture, {})[part] = numbers
    return out


class Books:
    """admission is brought to where the former attempts of the run left it. booked: training steps that are in the
    ledger."""

    def __init__(self, run: Path, admission: Admission, attempt: int, parts: Sequence[str]):
        self.folder, self.admission, self.booked = run / "rollouts", admission, 0
        self._attempt, self._parts = attempt, parts
        self._finished: dict[str, list[Trajectory]] = {}  # live groups whose episodes are all over
        self.ledger = Ledger(run / "ledger.jsonl")
        rows = list(ledger.rows(run / "ledger.jsonl"))
        self._trained = {row["group"]: (row["trained"], row["masked"]) for row in rows if row["event"] == "trained"}
        self._resume(rows)

    def _resume(self, rows: list[dict]) -> None:
        buffered = {path.stem for path in (self.folder / "buffer").glob("*.parquet")}
        events: dict[str, dict[str, dict]] = defaultdict(dict)  # group -> event -> row
        for row in rows:
            events[row["group"]][row["event"]] = row
        lost = self.admission.replay(rows, {path.name for path in self.folder.glob("step_*.parquet")}, buffered)
        ended = {"trained", "dropped"}
        begun = {
            group: own
            for group, own in events.items()
            if own.get("admitted", {}).get("split") == "heldout" and not ended & own.keys()
        }
        for group in lost:
            self.admission.drop(group)
        for group in (*lost, *sorted(self._take_up_evaluations(begun))):
            self.ledger.write(
                "dropped", group, reason=ATTEMPT_ENDED, tokens=events[group].get("finished", {}).get("sampled", 0)
            )
        for group in buffered - self.admission.live.keys():
            self._buffer(group).unlink()  # its step's file is there
        for group in self.admission.live:
            self._finished[group] = trajectory_files.read(self._buffer(group))[0]
            self._book_finished(group, self._finished[group], known=events[group])

    def close(self) -> None:
        self.ledger.close()

    def admit(self, position: int, task: Task, version: int, episodes: int, scaffold: str = "") -> str:
        """The new group's name. scaffold: of a mixture."""
        group = f"a{self._attempt}-p{position}"
        self.ledger.write(
            "admitted",
            group,
            task=task.task_id,
            split="train",
            position=position,
            version=version,
            episodes=episodes,
            **({"set": task.metadata[TASK_SET]} if TASK_SET in task.metadata else {}),
            **({"scaffold": scaffold} if scaffold else {}),
        )
        self.admission.admit(group, position)
        return group

    def finish(self, group: str, members: list[Trajectory]) -> None:
        """A group that teaches nothing is dropped while the step has refills left: another task takes its place.

        One of which the machine ended every episode is kept for this attempt alone: a later one, on a machine that
        works, runs it again.
        """
        refill_of = self.admission.finish(group, teaches(members))
        if refill_of is None:
            if any(detail_of(t) is None for t in members):
                trajectory_files.write(self._buffer(group), members, {})
            self._finished[group] = members
        self._book_finished(group, members)
        if refill_of is not None:
            self.admission.drop(group, refill_of)
            reason = (
                "infrastructure_error"
                if all(t.outcome == Outcome.INFRASTRUCTURE_ERROR for t in members)
                else "zero_variance"
            )
            self.ledger.write("dropped", group, reason=reason, tokens=sampled_tokens(members), step=refill_of)

    def store_step(self, extra: dict) -> dict | None:
        """Writes the next step's file as soon as its groups are all finished. Returns its stats; None: not yet.
        EngineError, and no file, when the machine ended every episode of it."""
        groups, step = self.admission.complete(), self.admission.next_step
        if not groups:
            return None
        taken = {group: self._finished[group] for group in groups}
        path, trajectories = (
            self.folder / f"step_{step:05d}.parquet",
            [trajectory for members in taken.values() for trajectory in members],
        )
        refuse_broken(f"step {step}", [detail_of(t) for t in trajectories])
        exhausted = self.admission.max_refills > 0 and not all(map(teaches, taken.values()))
        stats = (
            statistics(trajectories, self._parts)
            | {"refills": self.admission.refills[step], "refills_exhausted": exhausted}
            | extra
        )
        digest = trajectory_files.write_temporary(path, trajectories, stats)
        for group in groups:
            self.ledger.write("stored", group, step=step, file=path.name, sha256=digest)
        trajectory_files.publish(path)  # last: a file that the trainer or a later attempt sees is in the books
        for group in groups:
            self.admission.consume(group)
            del self._finished[group]
            self._buffer(group).unlink(missing_ok=True)
        return stats

    def admit_evaluation(self, name: str, number: int, task: Task, version: int, episodes: int) -> str:
        group = f"a{self._attempt}-eval_{name}-{number}"
        self.ledger.write("admitted", group, task=task.task_id, split="heldout", version=version, episodes=episodes)
        return group

    def drop_evaluation(self, groups: dict[str, list[Trajectory]]) -> None:
        """One that can't be used: nothing of it is in a file, as if its attempt had ended."""
        for group, members in groups.items():
            self._book_finished(group, members)
            self.ledger.write("dropped", group, reason=ATTEMPT_ENDED, tokens=sampled_tokens(members))

    def store_evaluation(self, name: str, groups: dict[str, list[Trajectory]], extra: dict) -> None:
        """Its file comes before the rows that end its groups: an evaluation beside training is not made again, so a
        later attempt has to be able to write them."""
        for group, members in groups.items():
            self._book_finished(group, members)
        path, trajectories = (
            self.folder / f"eval_{name}.parquet",
            [trajectory for members in groups.values() for trajectory in members],
        )
        digest = trajectory_files.write(path, trajectories, statistics(trajectories, self._parts) | extra)
        for group, members in groups.items():
            self._end_evaluated(group, members, path, digest)

    def _end_evaluated(
        self, group: str, members: list[Trajectory], path: Path, digest: str, known: Container[str] = ()
    ) -> None:
        """version: the newest that sampled it, since weights change under episodes beside training."""
        if "stored" not in known:
            self.ledger.write("stored", group, file=path.name, sha256=digest)
        versions = set().union(*(t.policy_versions for t in members))
        newest = {"version": max(versions)} if versions else {}
        self.ledger.write("dropped", group, reason="evaluation", tokens=sampled_tokens(members), **newest)

    def _take_up_evaluations(self, begun: dict[str, dict[str, dict]]) -> set[str]:
        """begun: group -> event -> row of held-out groups without an end. Ends those whose evaluation's file is there;
        returns the others."""
        by_file: dict[Path, list[str]] = defaultdict(list)
        for group, events in begun.items():  # a file that was renamed since says so in its row
            name = events.get("stored", {}).get("file", f"{group.partition('-')[2].rpartition('-')[0]}.parquet")
            by_file[self.folder / name].append(group)
        lost = set(begun)
        for path, groups in by_file.items():
            members: dict[str, list[Trajectory]] = defaultdict(list)
            for trajectory in trajectory_files.read(path)[0] if path.exists() else ():
                members[trajectory.group_id].append(trajectory)
            for group in members.keys() & set(groups):
                self._end_evaluated(group, members[group], path, trajectory_files.sha256(path), known=begun[group])
                lost.remove(group)
        return lost

    def book_training(self) -> None:
        """Books the trainer's answers, step after step. A step that is trained again after a resume must come out as
        before: EngineError."""
        while (report := read_json(self.folder / f"step_{self.booked:05d}.trained.json")) is not None:
            for group, tokens in report["groups"].items():
                before = self._trained.get(group)
                if before is None:
                    self.ledger.write(
                        "trained",
                        group,
                        step=self.booked,
                        version=report["version"],
                        trained=tokens["trained"],
                        masked=tokens["masked"],
                    )
                elif before != (tokens["trained"], tokens["masked"]):
                    raise EngineError(
                        f"step {self.booked} was trained again after a resume, of {group} {tokens} and not {before} as "
                        "before: "
                        "undo what was changed in the settings or in rollouts/, or take another `run:` folder"
                    )
            self.booked += 1

    def _buffer(self, group: str) -> Path:
        return self.folder / "buffer" / f"{group}.parquet"

    def _book_finished(self, group: str, members: list[Trajectory], known: Container[str] = ()) -> None:
        """known: events of the group that are in the ledger already."""
        if "finished" not in known:
            self.ledger.write(
                "finished", group, outcomes=[str(t.outcome) for t in members], sampled=sampled_tokens(members)
            )
        if "graded" not in known:
            self.ledger.write("graded", group, rewards=[t.reward for t in members])
