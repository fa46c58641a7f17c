"""Proves from a run's files alone that every group ended once and every sampled token is accounted for.

    python analysis/audit.py runs/quickstart

Checks: the ledger's chain (a row changed, added or removed by hand breaks it); every Parquet file's sha256; every group
admitted, finished, graded and ended exactly once; sampled = trained + masked + dropped, group by group, against the token ids
in the Parquet files; on-policy versions; the summary's and the metrics' totals. Exit code 1 and one line a violation.
"""
import json
import sys
from collections import defaultdict
from pathlib import Path

from coderepairrl import ledger, store
from coderepairrl.policy import read_json
from coderepairrl.types import Trajectory


class Audit:
    def __init__(self, run: Path):
        self.run, self.violations = run, []
        self.rows = list(ledger.rows(run / "ledger.jsonl"))
        self.by_group: dict[str, list[dict]] = defaultdict(list)
        for row in self.rows:
            self.by_group[row["group"]].append(row)
        self.trajectories: dict[str, list[Trajectory]] = defaultdict(list)

    def check(self, holds: bool, message: str) -> None:
        if not holds:
            self.violations.append(message)

    def chain(self) -> None:
        self.check(bool(self.rows), "ledger.jsonl: empty or missing")
        broken = ledger.broken_link(self.rows)
        self.check(broken is None, f"ledger.jsonl line {broken}: does not follow from the lines before it (changed by hand?)")

    def files(self) -> None:
        """Reads every Parquet file whose steps were kept, and compares it with the sha256 that the ledger booked last for it."""
        booked = {row["file"]: row["sha256"] for row in self.rows if row["event"] == "graded"}
        for path in sorted((self.run / "rollouts").glob("*.parquet")):
            self.check(path.name in booked, f"{path.name}: no ledger row speaks of it")
            if booked.get(path.name) != store.sha256(path):
                self.check(False, f"{path.name}: its sha256 is not the ledger's, so it is not read")
                continue
            for trajectory in store.read(path)[0]:
                self.trajectories[trajectory.group_id].append(trajectory)
        missing = {name for name in booked if not (self.run / "rollouts" / name).exists()}
        self.check(not missing, f"files of the ledger that are gone: {sorted(missing)}")

    def groups(self) -> None:
        last_attempt = max((self._attempt(group) for group in self.by_group), default=0)
        for group, rows in self.by_group.items():
            events = [row["event"] for row in rows]
            self.check(events.count("admitted") == 1, f"{group}: admitted {events.count('admitted')} times")
            ends = [row for row in rows if row["event"] in ("trained", "dropped")]
            if not ends and self._attempt(group) < last_attempt:
                continue  # an attempt that was killed: its unfinished groups ran again under other names
            self.check(len(ends) == 1, f"{group}: {len(ends)} ends instead of one ({events})")
            self.check(events.count("finished") == 1 and events.count("graded") == 1, f"{group}: not finished and graded once ({events})")
            if len(ends) == 1 and {"admitted", "finished", "graded"} <= set(events):
                self._tokens(group, rows, ends[0])

    def _tokens(self, group: str, rows: list[dict], end: dict) -> None:
        finished = next(row for row in rows if row["event"] == "finished")
        booked = end["trained"] + sum(end["masked"].values()) if end["event"] == "trained" else end["tokens"]
        self.check(booked == finished["sampled"], f"{group}: {finished['sampled']} tokens sampled, {booked} accounted for")
        members = self.trajectories.get(group)
        if members is None:
            self.check(self._superseded(rows), f"{group}: in no Parquet file")
            return
        in_file = sum(len(call.completion_ids) for t in members for call in t.calls)
        self.check(in_file == finished["sampled"], f"{group}: {in_file} sampled tokens in the file, {finished['sampled']} in the ledger")
        self.check([t.reward for t in members] == next(r for r in rows if r["event"] == "graded")["rewards"], f"{group}: rewards differ between file and ledger")
        admitted = next(row for row in rows if row["event"] == "admitted")
        self.check(len(members) == admitted["episodes"], f"{group}: {len(members)} episodes of {admitted['episodes']}")
        self.check([str(t.outcome) for t in members] == finished["outcomes"], f"{group}: outcomes differ between file and ledger")
        self.check({t.split for t in members} == {admitted["split"]}, f"{group}: the file's split is not the ledger's")
        self.check(admitted["split"] == "train" or end["event"] == "dropped", f"{group}: held-out tasks were trained")
        for trajectory in members:
            for call in trajectory.calls:
                self.check(len(call.completion_ids) == len(call.logprobs) == len(call.policy_versions), f"{trajectory.trajectory_id} call {call.index}: lengths differ")
                self.check(all(version == admitted["version"] for version in call.policy_versions), f"{trajectory.trajectory_id} call {call.index}: a token of another policy version")
                self._continues(trajectory, call)

    def _continues(self, trajectory: Trajectory, call) -> None:
        """Token in, token out: a continuation starts with exactly what was prompted and sampled before."""
        if call.parent is None:
            return
        parent = trajectory.calls[call.parent]
        start = parent.prompt_ids + (parent.completion_ids if call.parent_part == "completion" else ())
        self.check(call.prompt_ids[: len(start)] == start, f"{trajectory.trajectory_id} call {call.index}: its prompt does not start with its parent's tokens")

    def _superseded(self, rows: list[dict]) -> bool:
        """A later attempt wrote the same step again, so the file now holds other groups."""
        name = next((row["file"] for row in rows if row["event"] == "graded"), None)
        later = [row for row in self.rows if row["event"] == "graded" and row["file"] == name]
        return bool(later) and self._attempt(later[-1]["group"]) > self._attempt(rows[0]["group"])

    @staticmethod
    def _attempt(group: str) -> int:
        return int(group.split("-")[0].removeprefix("a"))

    def totals(self) -> None:
        summary = read_json(self.run / "summary.json")
        if summary is None:
            return
        trained = sum(row["trained"] for row in self.rows if row["event"] == "trained")
        sampled = sum(row["sampled"] for row in self.rows if row["event"] == "finished") + sum(row["tokens"] for row in self.rows if row["event"] == "infrastructure_error")
        self.check(summary["tokens_trained"] == trained, f"summary.json: {summary['tokens_trained']} tokens trained, the ledger has {trained}")
        self.check(summary["tokens_sampled"] == sampled, f"summary.json: {summary['tokens_sampled']} tokens sampled, the ledger has {sampled}")
        accounted = trained + sum(summary["tokens_masked"].values()) + sum(summary["tokens_dropped"].values())
        self.check(accounted == sampled or self._unfinished(), f"summary.json: {sampled} tokens sampled, {accounted} accounted for")
        metrics = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = {row["step"]: row["tokens_trained"] for row in metrics}
        booked: dict[int, int] = defaultdict(int)
        for row in self.rows:
            if row["event"] == "trained" and self.trajectories.get(row["group"]):
                booked[row["step"]] += row["trained"]
        for step, tokens in booked.items():
            self.check(steps.get(step) == tokens, f"step {step}: {steps.get(step)} tokens trained in metrics.jsonl, {tokens} in the ledger")

    def _unfinished(self) -> bool:
        return any(not any(row["event"] in ("trained", "dropped") for row in rows) for rows in self.by_group.values())


def audit(run: Path) -> list[str]:
    """The violations; none means that the books are right."""
    work = Audit(run)
    work.chain()
    work.files()
    work.groups()
    work.totals()
    return work.violations


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    violations = audit(Path(sys.argv[1]))
    for violation in violations[:50]:
        print(violation)
    if violations:
        sys.exit(f"{sys.argv[1]}: {len(violations)} violations")
    groups = {row["group"] for row in ledger.rows(Path(sys.argv[1]) / "ledger.jsonl")}
    print(f"{sys.argv[1]}: clean; {len(groups)} groups, each with one end, every sampled token accounted for")


if __name__ == "__main__":
    main()
