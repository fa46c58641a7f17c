"""Syntax trees are made in several threads of a rollout at once; some interpreters can't do that by themselves."""

import ast
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

from coderepairrl.grading import syntax

NESTED = "x = " + "[" * 40 + "1" + "]" * 40 + "\n" + "def f(a):\n    return {'a': (a, [a + 1, -a])}\n" * 30


class Slow:
    """What a collection ends in Python, where another thread may take over."""

    def __del__(self):
        sum(range(2000))


def deep(depth: int):
    """Threads differ in how deep they are when they begin."""
    return deep(depth - 1) if depth else of_one()


def of_one():
    for _ in range(20):
        slow = Slow()
        slow.itself = slow
    return ast.dump(syntax.parse(NESTED)), syntax.literal("[1, (2, {'a': -3})]")


def test_trees_are_made_in_many_threads_at_once():
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)  # a collection hands over to another thread in the midst of a tree
    try:
        with ThreadPoolExecutor(8) as pool:
            trees = list(pool.map(deep, [7 * number % 50 for number in range(300)]))
    finally:
        gc.set_threshold(*before)
        sys.setswitchinterval(interval)
    assert len(set(tree for tree, _ in trees)) == 1 and all(value == [1, (2, {"a": -3})] for _, value in trees)
