"""Whatever finishes, is dropped or dies when: steps get groups in order of admission, none too stale, and no place of
the data order twice."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.errors import ConfigError
from coderepairrl.rollout.scheduler import ATTEMPT_ENDED, Admission

STEPS = 5
KINDS = ["admit", "finish", "finish", "finish", "store", "train", "train", "serve", "kill"]
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**16), st.booleans()), max_size=120)


class World:
    """A run around an Admission: the ledger's rows, which files there are, a trainer that is `updates` steps far, a
    vLLM that may lag behind it."""

    def __init__(self, groups_per_step: int, max_staleness: int, max_refills: int):
        self.settings = (groups_per_step, max_staleness, max_refills)
        self.admission, self.attempt = Admission(*self.settings), 1
        self.rows: list[dict] = []
        self.files: list[str] = []
        self.buffer: set[str] = set()
        self.updates = self.serving = self.checkpoint = 0
        self.position: dict[str, int] = {}
        self.sampled: dict[str, list[int]] = {}  # group -> updates in the first and the last weights that sampled it
        self.steps: list[list[str]] = []
        self.admitted: list[str] = []
        self.replaced: list[str] = []  # dropped without variance
        self.refills: Counter[int] = Counter()

    def do(self, action: str, number: int, yes: bool) -> None:
        match action:
            case "admit":
                self.admit()
            case "finish":
                running = [group for group, entry in self.admission.live.items() if not entry.finished]
                if running:
                    self.finish(running[number % len(running)], yes)
            case "store":
                self.store()
            case "train" if self.updates < len(self.steps):
                self.updates += 1
                self.checkpoint = self.updates if yes else self.checkpoint
            case "serve":
                self.serving = self.updates
            case "kill":
                self.kill()

    def admit(self) -> None:
        while (position := self.admission.next_position(self.serving, STEPS)) is not None:
            group = f"a{self.attempt}-p{position}"
            assert group not in self.position, "a group's name twice"
            self.rows.append({"event": "admitted", "group": group, "split": "train", "position": position})
            self.admission.admit(group, position)
            self.position[group], self.sampled[group] = position, [self.serving, self.serving]
            self.admitted.append(group)

    def finish(self, group: str, teaches: bool) -> None:
        step = self.admission.finish(group, teaches)
        self.sampled[group][1] = self.serving
        if step is None:
            self.buffer.add(group)
            return
        assert not teaches
        self.admission.drop(group, step)
        self.rows.append({"event": "dropped", "group": group, "reason": "zero_variance", "step": step})
        self.replaced.append(group)
        self.refills[step] += 1

    def store(self) -> None:
        while groups := self.admission.complete():
            step = self.admission.next_step
            self.rows += [{"event": "stored", "group": group, "file": f"step_{step}", "step": step} for group in groups]
            self.files.append(f"step_{step}")
            self.steps.append(groups)
            for group in groups:
                assert step - self.sampled[group][0] <= self.settings[1], "staler than allowed"
                assert self.sampled[group][1] <= step, "sampled by weights that its step has not made yet"
                self.admission.consume(group)
            self.buffer -= set(groups)

    def kill(self) -> None:
        """All processes die; the next attempt knows the rows, the files and the newest checkpoint."""
        before = self.admission
        self.admission = Admission(*self.settings)
        lost = self.admission.replay(self.rows, self.files, self.buffer)
        for group in lost:
            self.rows.append({"event": "dropped", "group": group, "reason": ATTEMPT_ENDED})
            self.admission.drop(group)
        assert [group for group in before.live if before.live[group].finished] == list(self.admission.live), (
            "buffered groups, in their order"
        )
        assert (before.consumed, before.fresh, before.refills) == (
            self.admission.consumed,
            self.admission.fresh,
            self.admission.refills,
        )
        assert self.admission.again == sorted(self.admission.again)
        assert set(self.admission.again) == set(before.again) | {
            entry.position for entry in before.live.values() if not entry.finished
        }
        self.attempt += 1
        self.updates = self.serving = self.checkpoint

    def drain(self, answers) -> None:
        """The rest of the run, undisturbed."""
        for _ in range(10_000):
            if len(self.steps) == STEPS:
                return
            self.admit()
            running = [group for group, entry in self.admission.live.items() if not entry.finished]
            for group in running:
                self.finish(group, next(answers))
            self.store()
            self.updates = self.serving = len(self.steps)
        raise AssertionError("the run does not end")

    def check(self) -> None:
        groups_per_step, _, max_refills = self.settings
        consumed = [group for groups in self.steps for group in groups]
        assert all(len(groups) == groups_per_step for groups in self.steps)
        assert consumed == [group for group in self.admitted if group in set(consumed)], "not in order of admission"
        used = sorted(self.position[group] for group in consumed + self.replaced)
        assert used == list(range(len(used))), "a position twice or left out"
        assert all(number <= max_refills for number in self.refills.values())


@pytest.mark.parametrize("max_staleness", range(9))
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), ACTIONS, st.randoms(use_true_random=False))
def test_order_staleness_and_positions(max_staleness, groups_per_step, max_refills, actions, random):
    world = World(groups_per_step, max_staleness, max_refills)
    for action in actions:
        world.do(*action)
    world.drain(iter(lambda: random.random() < 0.5, None))
    world.check()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), ACTIONS)
def test_without_staleness_nothing_runs_ahead(groups_per_step, actions):
    """On-policy: every token of a step is of the weights that the step starts from; the data order is the plain one,
    but for what was lost."""
    world = World(groups_per_step, 0, 0)
    for action in actions:
        world.do(*action)
        assert len(world.admission.live) <= groups_per_step
        assert all(world.sampled[group] == [step, step] for step, groups in enumerate(world.steps) for group in groups)
    world.drain(iter(lambda: True, None))
    positions = [sorted(world.position[group] for group in groups) for groups in world.steps]
    assert positions == [list(range(n * groups_per_step, (n + 1) * groups_per_step)) for n in range(STEPS)]


def test_how_far_it_runs_ahead():
    for max_staleness in range(9):
        world = World(3, max_staleness, 0)
        world.admit()
        assert len(world.admission.live) == 3 * min(max_staleness + 1, STEPS)


def test_one_slow_group_holds_up_its_step_alone():
    """Those behind it are admitted, run, and wait: at most as many as the bound lets in."""
    world = World(2, 1, 0)
    world.admit()
    slow, *others = world.admission.live
    for group in others:
        world.finish(group, True)
    world.store()
    world.admit()
    assert world.steps == [] and list(world.admission.live) == [slow, *others] and len(others) == 3
    world.finish(slow, True)
    world.store()
    assert world.steps == [[slow, others[0]], others[1:]]


def test_nothing_ever_teaches_and_yet_it_ends():
    world = World(3, 2, 2)
    world.drain(iter(lambda: False, None))
    world.check()
    assert sum(world.refills.values()) == 2 * STEPS


def test_a_ledger_of_another_time_is_refused():
    with pytest.raises(ConfigError, match="take another `run:` folder"):
        Admission(2).replay([{"event": "admitted", "group": "a1-s0-0", "split": "train", "version": 0}], (), ())
    rows = [{"event": "admitted", "group": f"a1-p{i}", "split": "train", "position": i} for i in range(3)]
    rows += [{"event": "stored", "group": f"a1-p{i}", "step": 0, "file": "step_0"} for i in range(3)]
    with pytest.raises(ConfigError, match="groups_per_step=2"):
        Admission(2).replay(rows, ("step_0",), ())
