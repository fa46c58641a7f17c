"""The order of training: shares of several sets and scaffolds, each task once an epoch of its set, the same after a
resume, and of one set what it was before there were mixtures."""

import random
from collections import Counter

from books_helpers import task
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.rollout.order import Order, Rotation

weights = st.lists(st.floats(0.05, 20.0), min_size=1, max_size=5).map(
    lambda own: {f"n{i}": w for i, w in enumerate(own)}
)


def members(name, count):
    return [task(f"{name}-{i}", set=name) for i in range(count)]


@given(weights, st.integers(1, 400))
def test_after_any_number_of_turns_each_has_had_its_share(weighed, number):
    rotation = Rotation(weighed)
    counts = Counter(rotation.at(i)[0] for i in range(number))
    for name, weight in weighed.items():
        due = number * weight / sum(weighed.values())
        assert abs(counts[name] - due) < max(1.0, (len(weighed) - 1) / 2) + 1e-6, (counts, weighed)


@given(weights, st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_turn_depends_on_its_number_alone(weighed, numbers):
    """Asked in any order, as after a resume, which asks first for the groups that were lost."""
    one, other = Rotation(weighed), Rotation(weighed)
    asked = {number: one.at(number) for number in numbers}
    assert asked == {number: other.at(number) for number in sorted(numbers)}
    for number, (name, before) in asked.items():
        assert before == sum(other.at(i)[0] == name for i in range(number))


@given(weights, st.data(), st.integers(0, 5))
def test_a_set_is_walked_once_an_epoch_and_its_scaffolds_take_turns_in_it(weighed, data, seed):
    sizes = {name: data.draw(st.integers(1, 9)) for name in weighed}
    tasks = [one for name, size in sizes.items() for one in members(name, size)]
    scaffolds = data.draw(weights)
    order, again = (Order(tasks, seed, weighed, scaffolds) for _ in range(2))
    drawn = [order.at(position) for position in range(150)]
    resumed = data.draw(st.integers(0, 149))
    assert [again.at(position) for position in range(resumed, 150)] == drawn[resumed:]
    for name, size in sizes.items():
        own = [one for one in drawn if one.task.metadata["set"] == name]
        for start in range(0, len(own) - size + 1, size):
            assert len({one.task.task_id for one in own[start : start + size]}) == size, "each once an epoch"
        counts = Counter(one.scaffold for one in own)
        for scaffold, weight in scaffolds.items():
            due = len(own) * weight / sum(scaffolds.values())
            assert abs(counts[scaffold] - due) < max(1.0, (len(scaffolds) - 1) / 2) + 1e-6, "within every set"


@given(st.integers(1, 12), st.integers(0, 99), st.integers(0, 50))
def test_one_set_has_the_order_that_it_had_before_there_were_mixtures(size, seed, position):
    """Runs that were begun then go on."""
    tasks = [task(i) for i in range(size)]
    epoch, place = divmod(position, size)
    before = tasks[random.Random(f"{seed}-{epoch}").sample(range(size), size)[place]]
    assert Order(tasks, seed).at(position) == (before, "")


def test_a_set_without_a_task_has_no_turn():
    order = Order(members("there", 3), 0, {"there": 1.0, "for_evaluation": 5.0})
    assert {order.at(i).task.metadata["set"] for i in range(9)} == {"there"}
