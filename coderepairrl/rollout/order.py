"""The order of training: which task, and under which of several scaffolds, stands at a position. A pure function of
seed and position, so that an attempt that goes on gets what the one before would have got.

Sets and scaffolds of a mixture take turns by their weights: next is the one that is farthest behind its share, so that
after any number of groups each has had its share, to within a group for up to three of them. A set is walked in a new
order each epoch of its own. The scaffolds take turns within each set, so that no set is left to one of them.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coderepairrl.types import TASK_SET, Task


class Rotation:
    """Names in turn, each as often as its weight says."""

    def __init__(self, weights: Mapping[str, float]):
        total = sum(weights.values())
        self._shares = {name: weight / total for name, weight in weights.items()}
        self._counts = dict.fromkeys(weights, 0)
        self._turns: list[tuple[str, int]] = []

    def at(self, number: int) -> tuple[str, int]:
        """(whose turn it is, how many it has had before)."""
        while len(self._turns) <= number:
            due = lambda name: self._shares[name] * (len(self._turns) + 1) - self._counts[name]
            name = max(self._shares, key=due)
            self._turns.append((name, self._counts[name]))
            self._counts[name] += 1
        return self._turns[number]


class Drawn(NamedTuple):
    """What stands at a position."""

    task: Task
    scaffold: str  # its name in a mixture, else ""


class Order:
    """tasks: of the training split, at least one. weights: of the task sets, 1 where there are none; a set without a
    task has no turn. scaffolds: name -> weight, of a mixture of them."""

    def __init__(
        self, tasks: Sequence[Task], seed: int, weights: Mapping[str, float] = {}, scaffolds: Mapping[str, float] = {}
    ):
        self._sets: dict[str, list[Task]] = {}
        for task in tasks:
            self._sets.setdefault(task.metadata.get(TASK_SET, ""), []).append(task)
        self._seed = seed
        self._turns = Rotation({name: weights.get(name, 1.0) for name in self._sets})
        self._scaffolds = {name: Rotation(scaffolds or {"": 1.0}) for name in self._sets}

    def at(self, position: int) -> Drawn:
        name, number = self._turns.at(position)
        tasks = self._sets[name]
        epoch, place = divmod(number, len(tasks))
        seed = f"{self._seed}-{name}-{epoch}" if name else f"{self._seed}-{epoch}"
        order = random.Random(seed).sample(range(len(tasks)), len(tasks))
        return Drawn(tasks[order[place]], self._scaffolds[name].at(number)[0])
