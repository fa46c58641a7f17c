"""Which task runs next, and which groups a training step gets: pure bookkeeping, the same for synchronous and
asynchronous runs.

A group is admitted while

    consumed + live < (max_staleness + s + 1) * groups_per_step        s: updates in the weights that vLLM serves

Groups are consumed in their order of admission, and a dropped group only moves those behind it forward: a group that
was admitted under weights of s updates is consumed at step N <= s + max_staleness. Nothing else is needed for the
bound, and 0 is on-policy.

Words: a position is a place in the data order, a pure function of seed and position (rollout.py). Of every position one
group is consumed, or dropped without variance; a group that was lost with its attempt gives its position back, which
then runs first.
"""

from bisect import insort
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass

from coderepairrl.errors import ConfigError

ATTEMPT_ENDED = "attempt_ended"  # the reason of a group that was lost with its attempt


@dataclass
class LiveGroup:
    position: int
    finished: bool = False


class Admission:
    """live: by group's name, in order of admission: neither consumed nor dropped. again: positions to run before fresh
    ones."""

    def __init__(self, groups_per_step: int, max_staleness: int = 0, max_refills: int = 0):
        self.groups_per_step, self.max_staleness, self.max_refills = groups_per_step, max_staleness, max_refills
        self.live: dict[str, LiveGroup] = {}
        self.again: list[int] = []
        self.fresh = 0  # the first position that no group has had
        self.consumed = 0  # groups, since the beginning of the run
        self.refills: Counter[int] = Counter()  # step -> groups without variance that were dropped on its account

    @property
    def next_step(self) -> int:
        """The step whose groups are consumed next."""
        return self.consumed // self.groups_per_step

    def next_position(self, updates: int, steps: int) -> int | None:
        """What may be admitted under weights of so many updates in a run of `steps` steps; None: nothing now."""
        if self.consumed + len(self.live) >= min(self.max_staleness + updates + 1, steps) * self.groups_per_step:
            return None
        return self.again[0] if self.again else self.fresh

    def admit(self, group: str, position: int) -> None:
        if position == self.fresh:
            self.fresh += 1
        else:
            self.again.remove(position)
        self.live[group] = LiveGroup(position)

    def finish(self, group: str, teaches: bool) -> int | None:
        """None: the group stays. A step: drop it, at the expense of this step's refills.

        That is the step that would have consumed it; each can pay for max_refills groups, so there is always an end.
        """
        self.live[group].finished = True
        step = (self.consumed + list(self.live).index(group)) // self.groups_per_step
        return None if teaches or self.refills[step] >= self.max_refills else step

    def drop(self, group: str, refill_of: int | None = None) -> None:
        """refill_of: the step that pays for it. None: the group was lost with its attempt, its position runs again."""
        position = self.live.pop(group).position
        if refill_of is None:
            insort(self.again, position)
        else:
            self.refills[refill_of] += 1

    def complete(self) -> list[str]:
        """The next step's groups, in order of admission; empty while one of them is not finished."""
        groups = list(self.live)[: self.groups_per_step]
        return (
            groups if len(groups) == self.groups_per_step and all(self.live[group].finished for group in groups) else []
        )

    def consume(self, group: str) -> None:
        del self.live[group]
        self.consumed += 1

    def replay(self, rows: Iterable[dict], stored: Container[str], buffered: Container[str]) -> list[str]:
        """Rebuilds the state from the ledger's rows. stored: names of the step files that exist; buffered: groups with
        a file of their own. Returns the groups that have neither: they are lost, and still have to be dropped. Raises
        ConfigError."""
        for row in rows:
            group = row["group"]
            if row["event"] == "admitted" and row["split"] == "train":
                if "position" not in row:
                    raise ConfigError(
                        "ledger.jsonl was begun by a version without positions in the data order: take another `run:` "
                        "folder"
                    )
                self.admit(group, row["position"])
            elif group in self.live and row["event"] == "dropped":
                self.drop(group, row.get("step"))
            elif group in self.live and row["event"] == "stored" and row["file"] in stored:
                self.consume(group)
        if self.consumed % self.groups_per_step:
            raise ConfigError(
                f"{self.consumed} groups are stored in steps of another size than "
                f"groups_per_step={self.groups_per_step}: "
                "keep the setting of the first attempt, or take another `run:` folder"
            )
        for group, entry in self.live.items():
            entry.finished = group in buffered
        return [group for group, entry in self.live.items() if not entry.finished]
