"""Trees of calls -> samples: every sampled token is trained exactly once, tool output never."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.training import batch
from coderepairrl.types import Call, Outcome, Trajectory


class Tree:
    """Builds calls by hand. Token ids are readable: a sampled token is 1000 + a running number, everything else is
    below."""

    def __init__(self):
        self.calls, self.sampled = [], 1000

    def call(self, parent=None, part="completion", new=(1, 2), count=2, prompt=None):
        """A call that continues `parent` with `new` tokens of the user or a tool, and samples `count` tokens."""
        if parent is not None:
            above = self.calls[parent]
            prompt = above.prompt_ids + (above.completion_ids if part == "completion" else ()) + tuple(new)
        completion = tuple(range(self.sampled, self.sampled + count))
        self.sampled += count
        index = len(self.calls)
        self.calls.append(
            Call(
                index,
                parent,
                None if parent is None else part,
                tuple(prompt or new),
                completion,
                tuple(-i / 1e4 for i in completion),
                tuple(i % 5 for i in completion),
                "stop",
                False,
                0.0,
                0.0,
            )
        )
        return index

    def trajectory(self, name="t"):
        return Trajectory(
            name, "g", "task", "train", 0, tuple(self.calls), "", Outcome.SUBMITTED, "", None, {}, 0.0, 0.0
        )


def append_only():
    tree = Tree()
    last = tree.call(new=(1, 2, 3))
    for _ in range(3):
        last = tree.call(last)
    return tree, 1


def fork():
    tree = Tree()
    root = tree.call()
    left = tree.call(root, new=(5,))
    tree.call(root, new=(6, 7))
    tree.call(left)
    return tree, 2


def deep_shared_prefix():
    tree = Tree()
    last = tree.call(tree.call(tree.call()))
    for token in (11, 12, 13):
        tree.call(tree.call(last, new=(token,)))
    return tree, 3


def same_prompt_again():
    """n = 2: the second choice has its parent's prompt, and goes on by itself."""
    tree = Tree()
    first = tree.call()
    second = tree.call(first, "prompt", new=())
    tree.call(second)
    return tree, 2


def dropped_turn():
    """In the middle of a conversation the client dropped a turn, and asked the same prompt again."""
    tree = Tree()
    turn = tree.call(tree.call())
    again = tree.call(turn, "prompt", new=())
    tree.call(again)
    tree.call(turn, new=(8, 9))
    return tree, 2


def two_roots():
    tree = Tree()
    tree.call(tree.call(new=(1,)))
    tree.call(tree.call(new=(2,), prompt=None))
    return tree, 2


TREES = [append_only, fork, deep_shared_prefix, same_prompt_again, dropped_turn, two_roots]


def advantages_of(tree):
    """Another one of every call, none of them 0."""
    return [0.7 - call.index for call in tree.calls]


def check_rows(tree, rows):
    """What must hold for the rows of any tree that has advantages_of()."""
    of_token = {
        token: (logprob, version, advantage)
        for call, advantage in zip(tree.calls, advantages_of(tree), strict=True)
        for token, logprob, version in zip(call.completion_ids, call.logprobs, call.policy_versions)
    }
    sampled = [token for call in tree.calls for token in call.completion_ids]
    marked = [token for row in rows for token, on in zip(row.token_ids, row.loss_mask) if on]
    assert sorted(marked) == sorted(sampled)  # each exactly once; tool output has ids below 1000 and is not among them
    for number, row in enumerate(rows):
        assert row.branch_id == number and row.position_ids == tuple(range(len(row.token_ids)))
        for token, on, logprob, version, advantage in zip(
            row.token_ids, row.loss_mask, row.behaviour_logprobs, row.policy_versions, row.advantages, strict=True
        ):
            assert (logprob, version, advantage) == (of_token[token] if on else (0.0, -1, 0.0))
        assert row.loss_mask[0] == 0  # column 0 has no logprob, so nothing may be trained there
    wholes = [call.prompt_ids + call.completion_ids for call in tree.calls]
    for row in rows:
        assert row.token_ids in wholes
    for whole in wholes:  # nothing that the model was shown is lost
        assert any(row.token_ids[: len(whole)] == whole for row in rows)


@pytest.mark.parametrize("make", TREES)
def test_every_sampled_token_is_trained_once_and_nothing_else(make):
    tree, branches = make()
    rows = batch.samples(tree.trajectory(), advantages_of(tree))
    assert len(rows) == branches
    check_rows(tree, rows)
    assert batch.trained_tokens(rows) == {"t": len([1 for call in tree.calls for _ in call.completion_ids])}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(["completion", "completion", "prompt", "root"]),
            st.integers(0, 3),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_so_it_is_for_any_tree(steps):
    tree = Tree()
    for at, part, new, count in steps:
        parent = at % len(tree.calls) if tree.calls and part != "root" else None
        extra = tuple(range(1, 1 + new)) if parent is not None else tuple(range(1, 2 + new))
        tree.call(
            parent,
            part if parent is not None else "completion",
            new=() if part == "prompt" and parent is not None else extra,
            count=count,
        )
    check_rows(tree, batch.samples(tree.trajectory(), advantages_of(tree)))


def test_branches_are_paths_from_a_root_to_every_leaf():
    tree, _ = deep_shared_prefix()
    assert [[call.index for call in path] for path in batch.branches(tree.calls)] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5, 6],
        [0, 1, 2, 7, 8],
    ]


def test_a_call_that_is_no_part_of_its_branch_is_refused():
    tree, _ = append_only()
    tree.calls[1] = replace(tree.calls[1], completion_ids=(9, 9), prompt_ids=tree.calls[1].prompt_ids)
    with pytest.raises(AssertionError, match="call 1 is no part of its branch"):
        batch.samples(tree.trajectory(), advantages_of(tree))


def test_every_call_needs_its_advantage():
    tree, _ = fork()
    with pytest.raises(AssertionError, match="3 advantages of 4 calls"):
        batch.samples(tree.trajectory(), [0.7] * 3)


def test_a_shared_call_has_its_advantage_in_the_first_branch_only():
    tree, _ = fork()  # 0 -> 1 -> 3 and 0 -> 2
    rows = batch.samples(tree.trajectory(), [0.1, 0.2, 0.3, 0.4])
    found = [[a for a, on in zip(row.advantages, row.loss_mask) if on] for row in rows]
    assert found == [[0.1, 0.1, 0.3, 0.3], [0.2, 0.2, 0.4, 0.4]]


def test_a_trajectory_without_calls_gives_no_rows():
    assert batch.samples(Tree().trajectory(), []) == [] and batch.trained_tokens([]) == {}
