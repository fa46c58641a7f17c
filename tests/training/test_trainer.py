"""Which episode teaches what: advantages by group, and every reason for which tokens are not trained."""

import pytest
from trainer_helpers import episode, judged

from coderepairrl.training.trainer import books
from coderepairrl.types import Outcome


def test_advantages_are_taken_within_a_group():
    out = judged(
        [episode("a", "g", 1.0), episode("b", "g", 0.0), episode("c", "h", 5.0), episode("d", "h", 9.0)],
        advantage="centred",
    )
    assert out.advantage == {"a": (0.5,), "b": (-0.5,), "c": (-2.0,), "d": (2.0,)}
    assert out.masked == {} and (out.zero_variance_groups, out.groups) == (0, 2)


def test_a_broken_machine_is_in_no_statistics():
    out = judged(
        [episode("a", "g", 1.0), episode("b", "g", 0.0), episode("x", "g", 0.0, Outcome.INFRASTRUCTURE_ERROR)],
        advantage="centred",
    )
    assert out.advantage == {"a": (0.5,), "b": (-0.5,)} and out.masked == {"x": "infrastructure_error"}
    alone = judged([episode("x", "g", 0.0, Outcome.INFRASTRUCTURE_ERROR)])
    assert alone.advantage == {} and alone.zero_variance_groups == 0 and alone.groups == 0  # no share of groups to tell


def test_groups_without_variance_are_counted_and_masked():
    out = judged([episode("a", "g", 0.1), episode("b", "g", 0.1), episode("c", "g", 0.1)])
    assert out.masked == {name: "zero_variance" for name in "abc"} and out.zero_variance_groups == 1


@pytest.mark.parametrize("max_staleness, masked", [(2, set()), (1, {"old"}), (0, {"old", "mixed"})])
def test_one_token_that_is_too_old_masks_its_episode(max_staleness, masked):
    rows = [
        episode("new", "g", 1.0),
        episode("mixed", "g", 0.0, versions=(2, 3)),
        episode("old", "g", 0.5, versions=(1, 3)),
    ]
    assert judged(rows, max_staleness).masked == {name: "stale" for name in masked}


def test_truncated_episodes_are_trained_unless_asked_otherwise():
    rows = [
        episode("a", "g", 1.0),
        *(
            episode(str(o), "g", 0.0, o)
            for o in (Outcome.TURN_LIMIT, Outcome.TOKEN_LIMIT, Outcome.TIME_LIMIT, Outcome.AGENT_ERROR)
        ),
    ]
    assert judged(rows).masked == {}
    out = judged(rows, mask_truncated=True)
    assert out.masked == {name: "truncated" for name in ("turn_limit", "token_limit", "time_limit")}
    assert out.advantage == judged(rows).advantage  # they still count in the group's mean


def test_long_episodes_lose_reward_within_the_buffer():
    rows = [
        episode("short", "g", 1.0, prompt=10),
        episode("half", "g", 1.0, prompt=88),
        episode("full", "g", 1.0, prompt=120),
    ]
    assert judged(rows).zero_variance_groups == 1
    out = judged(rows, advantage="centred", overlong_buffer=20)
    assert out.advantage.keys() == {"short", "half", "full"}
    assert [*map(sum, out.advantage.values())] == pytest.approx([0.5, 0.0, -0.5])


def test_the_books_account_for_every_sampled_token():
    rows = [
        episode("a", "g", 1.0),
        episode("b", "g", 0.0, versions=(1, 3, 3)),
        episode("x", "g", 0.0, Outcome.INFRASTRUCTURE_ERROR, (3,) * 5),
        episode("c", "h", 1.0),
        episode("d", "h", 1.0),
    ]
    assert books(rows, judged(rows)) == {
        "g": {"trained": 2, "masked": {"stale": 3, "infrastructure_error": 5}},
        "h": {"trained": 0, "masked": {"zero_variance": 4}},
    }
