"""Proves from a run's files alone that every group ended once, every sampled token is accounted for, and none was
trained too late.

    python analysis/audit.py runs/quickstart

Checks: the ledger's chain (a row changed, added or removed by hand breaks it); every Parquet file's sha256; every group
admitted, finished, graded, stored and ended once; no position of the data order used twice or left out; the steps'
groups in
their order of admission; sampled = trained + masked + dropped, group by group, against the token ids in the Parquet
files;
no trained token staler than the run's rollout.max_staleness (0: on-policy), and none of weights that failed their
probe;
no version with two meanings; the totals of summary and metrics, and no metric that is NaN or infinite. Exit code 1 and
one line a
violation.
"""

import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

from coderepairrl.config import read_yaml
from coderepairrl.files import read_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.buffer import sampled_tokens
from coderepairrl.rollout.scheduler import ATTEMPT_ENDED
from coderepairrl.run.metrics import read_metrics
from coderepairrl.run.program import program
from coderepairrl.types import Trajectory
from coderepairrl.weights.probe import unproven_versions


class Audit:
    def __init__(self, run: Path):
        self.run, self.violations = run, []
        self.rows = list(ledger.rows(run / "ledger.jsonl"))
        # group -> event -> rows
        self.by_group: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            self.by_group[row["group"]][row["event"]].append(row)
        self.trajectories: dict[str, list[Trajectory]] = defaultdict(list)
        config = read_yaml(run / "config.yaml") if (run / "config.yaml").exists() else {}
        rollout = config.get("rollout", {})
        self.max_staleness, self.max_refills = rollout.get("max_staleness", 0), rollout.get("max_refills", 0)
        self.steps_of: dict[int, int] = {}  # version -> updates in its weights
        self.unproven = unproven_versions(run)
        # a run made before there was versions.jsonl: synchronous, lost groups without an end
        self.old = not any("position" in row for row in self.rows)

    def check(self, holds: bool, message: str) -> None:
        if not holds:
            self.violations.append(message)

    def chain(self) -> None:
        self.check(bool(self.rows), "ledger.jsonl: empty or missing")
        broken = ledger.broken_link(self.rows)
        self.check(
            broken is None, f"ledger.jsonl line {broken}: does not follow from the lines before it (changed by hand?)"
        )

    def versions(self) -> None:
        """A version has one meaning, and numbers only grow."""
        last = -1
        for row in ledger.rows(self.run / "policy" / "versions.jsonl"):
            self.check(row["version"] > last, f"versions.jsonl: version {row['version']} after {last}")
            self.check(
                self.steps_of.setdefault(row["version"], row["step"]) == row["step"],
                f"versions.jsonl: version {row['version']} is of two steps",
            )
            last = max(last, row["version"])
        self.check(bool(self.steps_of) or self.old, "versions.jsonl: empty or missing")

    def files(self) -> None:
        """Reads every Parquet file whose steps were kept, and compares it with the sha256 that the ledger booked last
        for it."""
        # of a group the last row counts: a run that went on gave a file another name
        where = {row["group"]: row for row in self.rows if "sha256" in row}
        booked = {row["file"]: row["sha256"] for row in where.values()}
        for path in sorted((self.run / "rollouts").glob("*.parquet")):
            self.check(path.name in booked, f"{path.name}: no ledger row speaks of it")
            if booked.get(path.name) != trajectory_files.sha256(path):
                self.check(False, f"{path.name}: its sha256 is not the ledger's, so it is not read")
                continue
            for trajectory in trajectory_files.read(path)[0]:
                self.trajectories[trajectory.group_id].append(trajectory)
        missing = {name for name in booked if not (self.run / "rollouts" / name).exists()}
        self.check(not missing, f"files of the ledger that are gone: {sorted(missing)}")

    def groups(self) -> None:
        last_attempt = max((self._attempt(group) for group in self.by_group), default=0)
        for group, events in self.by_group.items():
            self.check(len(events["admitted"]) == 1, f"{group}: admitted {len(events['admitted'])} times")
            ends = events["trained"] + events["dropped"]
            if not ends and self._attempt(group) < last_attempt and self.old:
                continue  # it ran again under another name
            self.check(
                len(ends) == 1,
                f"{group}: {len(ends)} ends instead of one ({dict(Counter(row['event'] for row in ends))})",
            )
            if not events["admitted"] or len(ends) != 1:
                continue
            if ends[0].get("reason") == ATTEMPT_ENDED:
                sampled = sum(row["sampled"] for row in events["finished"])
                self.check(
                    ends[0]["tokens"] == sampled,
                    f"{group}: {sampled} tokens sampled, {ends[0]['tokens']} accounted for",
                )
                self.check(
                    group not in self.trajectories, f"{group}: dropped because its attempt ended, and yet in a file"
                )
                continue
            once = len(events["finished"]) == len(events["graded"]) == 1
            self.check(
                once, f"{group}: not finished and graded once ({len(events['finished'])}, {len(events['graded'])})"
            )
            if once:
                self._tokens(group, events, ends[0])

    def _tokens(self, group: str, events: dict[str, list[dict]], end: dict) -> None:
        finished, graded, admitted = events["finished"][0], events["graded"][0], events["admitted"][0]
        booked = end["trained"] + sum(end["masked"].values()) if end["event"] == "trained" else end["tokens"]
        self.check(
            booked == finished["sampled"], f"{group}: {finished['sampled']} tokens sampled, {booked} accounted for"
        )
        self.check(admitted["split"] == "train" or end["event"] == "dropped", f"{group}: held-out tasks were trained")
        members = self.trajectories.get(group)
        if "step" in end and end["event"] == "dropped":
            rewards = {
                reward
                for reward, outcome in zip(graded["rewards"], finished["outcomes"])
                if outcome != "infrastructure_error"
            }
            self.check(len(rewards) <= 1, f"{group}: dropped for its equal rewards, which are not equal")
            self.check(members is None, f"{group}: dropped, and yet in a file")
            return
        if end["event"] == "trained" and events["stored"]:
            stored = events["stored"][-1].get("step")
            self.check(end["step"] == stored, f"{group}: trained at step {end['step']}, stored in step {stored}")
        if members is None:
            self.check(self._superseded(group, events), f"{group}: in no Parquet file")
            return
        in_file = sum(len(call.completion_ids) for t in members for call in t.calls)
        self.check(
            in_file == finished["sampled"],
            f"{group}: {in_file} sampled tokens in the file, {finished['sampled']} in the ledger",
        )
        self.check([t.reward for t in members] == graded["rewards"], f"{group}: rewards differ between file and ledger")
        self.check(len(members) == admitted["episodes"], f"{group}: {len(members)} episodes of {admitted['episodes']}")
        self.check(
            [str(t.outcome) for t in members] == finished["outcomes"],
            f"{group}: outcomes differ between file and ledger",
        )
        self.check({t.split for t in members} == {admitted["split"]}, f"{group}: the file's split is not the ledger's")
        last = {(t.trajectory_id, t.attempt) for t in members}
        twice = sum(
            row["tokens"] for row in events["infrastructure_error"] if (row["trajectory"], row["attempt"]) in last
        )
        self.check(
            not twice, f"{group}: {twice} tokens of infrastructure errors are booked twice: they are in the file, too"
        )
        for trajectory in members:
            for call in trajectory.calls:
                self.check(
                    len(call.completion_ids) == len(call.logprobs) == len(call.policy_versions),
                    f"{trajectory.trajectory_id} call {call.index}: lengths differ",
                )
                self._continues(trajectory, call)
        self._staleness(group, members, admitted, end)

    def _staleness(self, group: str, members: list[Trajectory], admitted: dict, end: dict) -> None:
        """Staleness of a token = the step that trains it - the updates in the weights that sampled it. An episode is
        masked as a whole."""
        versions = {t.trajectory_id: t.policy_versions for t in members}
        seen = set().union(*versions.values())
        if self.old:
            self.check(seen <= {admitted["version"]}, f"{group}: a token of another policy version")
            return
        # weights change under an evaluation
        newest = end.get("version", admitted["version"]) if end["event"] == "dropped" else admitted["version"]
        unknown = {*seen, admitted["version"], newest} - self.steps_of.keys()
        self.check(not unknown, f"{group}: versions {sorted(unknown)} are not in versions.jsonl")
        if unknown:
            return
        first = self.steps_of[admitted["version"]]
        last = end["step"] if end["event"] == "trained" else self.steps_of[newest]
        self.check(
            all(first <= self.steps_of[version] <= last for version in seen),
            f"{group}: a token of another policy version than those from its admission to its end",
        )
        self.check(
            admitted["split"] == "train" or not seen & self.unproven,
            f"{group}: evaluated under weights that failed their probe",
        )
        if end["event"] == "trained":
            tokens = lambda names: sampled_tokens([t for t in members if t.trajectory_id in names])
            late = {
                name
                for name, own in versions.items()
                if any(last - self.steps_of[version] > self.max_staleness for version in own)
            }
            wrong = {name for name, own in versions.items() if own & self.unproven}
            stale, unproven = tokens(late), tokens(wrong)
            self.check(
                end["trained"] + unproven <= tokens(versions) and end["masked"].get("unproven", 0) <= unproven,
                f"{group}: {end['trained']} tokens trained and {end['masked'].get('unproven', 0)} masked as "
                f"unproven, {unproven} are of episodes under weights that failed their probe",
            )
            self.check(
                end["trained"] + stale <= tokens(versions) and end["masked"].get("stale", 0) <= stale,
                f"{group}: {end['trained']} tokens trained and {end['masked'].get('stale', 0)} masked as stale, "
                f"{stale} are of episodes staler than {self.max_staleness}",
            )

    def _continues(self, trajectory: Trajectory, call) -> None:
        """Token in, token out: a continuation starts with exactly what was prompted and sampled before."""
        if call.parent is None:
            return
        parent = trajectory.calls[call.parent]
        start = parent.prompt_ids + (parent.completion_ids if call.parent_part == "completion" else ())
        self.check(
            call.prompt_ids[: len(start)] == start,
            f"{trajectory.trajectory_id} call {call.index}: its prompt does not start with its parent's tokens",
        )

    def _superseded(self, group: str, events: dict[str, list[dict]]) -> bool:
        """A later attempt wrote the same file again (held-out tasks; steps, in runs made before steps were kept)."""
        name = next((row["file"] for event in ("stored", "graded") for row in events[event] if "file" in row), None)
        later = [row for row in self.rows if row.get("file") == name]
        return bool(later) and self._attempt(later[-1]["group"]) > self._attempt(group)

    @staticmethod
    def _attempt(group: str) -> int:
        return int(group.split("-")[0].removeprefix("a"))

    def order(self) -> None:
        """Every position of the data order was consumed or dropped without variance once; steps take groups in their
        order of admission."""
        rank: dict[str, int] = {}
        uses: Counter[int] = Counter()
        refills: Counter[int] = Counter()
        for group, events in self.by_group.items():  # in order of admission
            for row in events["admitted"]:
                if "position" in row:
                    lost = any(end["reason"] == ATTEMPT_ENDED for end in events["dropped"])
                    uses[row["position"]] += not lost
                    if events["stored"] and not events["dropped"]:
                        rank[group] = events["stored"][-1]["step"]
            refills.update(row["step"] for row in events["dropped"] if "step" in row)
        wrong = [position for position in range(max(uses, default=-1) + 1) if uses[position] != 1]
        self.check(
            not wrong,
            f"positions of the data order used not once but {[uses[position] for position in wrong]} times: {wrong}",
        )
        self.check(
            list(rank.values()) == sorted(rank.values()),
            "a step holds a group that was admitted after one of a later step",
        )
        sizes = Counter(rank.values())
        self.check(
            len(set(sizes.values())) <= 1 and sorted(sizes) == list(range(len(sizes))),
            f"steps left out, or of different numbers of groups: {dict(sizes)}",
        )
        for step, number in refills.items():
            self.check(number <= self.max_refills, f"step {step}: {number} groups replaced, {self.max_refills} allowed")

    def numbers(self) -> None:
        for row in ledger.rows(self.run / "metrics.jsonl"):
            broken = [
                f"{name} is {value}"
                for name, value in row.items()
                if isinstance(value, float) and not math.isfinite(value)
            ]
            self.check(not broken, f"metrics.jsonl, step {row['step']}: {', '.join(broken)}")

    def totals(self) -> None:
        summary = read_json(self.run / "summary.json")
        if summary is None:
            return
        trained = sum(row["trained"] for row in self.rows if row["event"] == "trained")
        sampled = sum(row["sampled"] for row in self.rows if row["event"] == "finished")
        sampled += sum(row["tokens"] for row in self.rows if row["event"] == "infrastructure_error")
        self.check(
            summary["tokens_trained"] == trained,
            f"summary.json: {summary['tokens_trained']} tokens trained, the ledger has {trained}",
        )
        self.check(
            summary["tokens_sampled"] == sampled,
            f"summary.json: {summary['tokens_sampled']} tokens sampled, the ledger has {sampled}",
        )
        accounted = trained + sum(summary["tokens_masked"].values()) + sum(summary["tokens_dropped"].values())
        self.check(
            accounted == sampled or self._unfinished(),
            f"summary.json: {sampled} tokens sampled, {accounted} accounted for",
        )
        steps = {row["step"]: row["tokens_trained"] for row in read_metrics(self.run / "metrics.jsonl")}
        booked: dict[int, int] = defaultdict(int)
        for row in self.rows:
            if row["event"] == "trained" and self.trajectories.get(row["group"]):
                booked[row["step"]] += row["trained"]
        for step, tokens in booked.items():
            self.check(
                steps.get(step) == tokens,
                f"step {step}: {steps.get(step)} tokens trained in metrics.jsonl, {tokens} in the ledger",
            )

    def _unfinished(self) -> bool:
        return any(not events["trained"] + events["dropped"] for events in self.by_group.values())


def audit(run: Path) -> list[str]:
    """The violations; none means that the books are right."""
    work = Audit(run)
    work.chain()
    work.versions()
    work.files()
    work.groups()
    work.order()
    work.numbers()
    work.totals()
    return work.violations


@program
def main(arguments: list[str]) -> None:
    run = Path(arguments[0])
    if len(arguments) > 1 or not run.is_dir():
        sys.exit(__doc__)
    violations = audit(run)
    for violation in violations[:50]:
        print(violation)
    if violations:
        sys.exit(f"{run}: {len(violations)} violations")
    groups = {row["group"] for row in ledger.rows(run / "ledger.jsonl")}
    print(f"{run}: clean; {len(groups)} groups, each with one end, every sampled token accounted for")


if __name__ == "__main__":
    main(sys.argv[1:])
