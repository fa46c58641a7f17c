"""Each function against a slow reference in plain Python, and the properties that the training loop relies on."""

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.training.algorithm_config import PRESETS, AlgorithmConfig
from coderepairrl.training.algorithms import (
    correction,
    group_advantages,
    low_variance_kl,
    overlong_penalty,
    policy_loss,
    row_weights,
)
from coderepairrl.types import Sample

LOGPROBS = st.floats(-8, 0)
REWARDS = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=8)
# logp, behaviour, advantage, branch
TOKENS = st.lists(st.tuples(LOGPROBS, LOGPROBS, st.floats(-3, 3), st.integers(0, 2)), min_size=1, max_size=8)
KINDS = ("normalised", "centred", "leave_one_out")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def log_softmax(row):
    largest = max(row)
    total = largest + math.log(sum(math.exp(x - largest) for x in row))
    return [x - total for x in row]


def columns(rows):
    """Tensors of logp, behaviour, advantage, and dense branch numbers."""
    names = sorted({row[3] for row in rows})
    return (*(tensor([row[i] for row in rows]) for i in range(3)), torch.tensor([names.index(row[3]) for row in rows]))


@given(REWARDS, st.sampled_from(KINDS))
def test_advantages_follow_the_papers_equations(rewards, kind):
    got = group_advantages(kind, tensor(rewards)).tolist()
    mean, deviation, size = fmean(rewards), pstdev(rewards), len(rewards)
    wanted = {
        "normalised": lambda r: (r - mean) / (deviation + 1e-6),
        "centred": lambda r: r - mean,
        "leave_one_out": lambda r: r - (sum(rewards) - r) / (size - 1) if size > 1 else 0.0,
    }[kind]
    if deviation > 1e-9:  # below that the reference and torch differ by rounding alone
        assert got == pytest.approx([wanted(r) for r in rewards], rel=1e-6, abs=1e-9)
    assert sum(got) == pytest.approx(0, abs=1e-6)


@given(st.floats(-10, 10), st.integers(1, 16), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.float64]))
def test_a_group_of_equal_rewards_gets_exact_zeros(reward, size, kind, dtype):
    """Also where the mean of equal numbers is not that number: 0.1 three times in float64."""
    assert group_advantages(kind, torch.full((size,), reward, dtype=dtype)).tolist() == [0.0] * size


def test_three_times_a_tenth_is_a_group_without_variance():
    assert not group_advantages("normalised", tensor([0.1, 0.1, 0.1])).any()


def clip(ratio, low, high):
    return min(max(ratio, 1 - low), 1 + high)


def slow_losses(config, rows):
    """Token by token, from the papers' equations. (loss, ratio) of each."""
    out = []
    for logp, behaviour, advantage, branch in rows:
        # one update a step: the policy before it is the present one
        old = behaviour if config.correction == "none" else logp
        if config.surrogate == "sequence_ratio":
            own = [row for row in rows if row[3] == branch]
            ratio = math.exp(fmean(row[0] - (row[1] if config.correction == "none" else row[0]) for row in own))
        else:
            ratio = math.exp(logp - old)
        if config.surrogate == "clipped_weight":
            loss = -clip(ratio, config.clip_low, config.clip_high) * advantage * logp
        else:
            loss = -min(ratio * advantage, clip(ratio, config.clip_low, config.clip_high) * advantage)
        weight = math.exp(logp - behaviour)
        if config.correction == "truncate":
            loss *= min(weight, config.correction_cap)
        elif config.correction == "mask":
            loss *= weight if 1 / config.correction_cap <= weight <= config.correction_cap else 0.0
        out.append((loss, ratio if config.correction == "none" else weight))
    return out


@settings(max_examples=400)
@given(TOKENS, st.sampled_from(sorted(PRESETS)), st.sampled_from(["none", "truncate", "mask"]))
def test_every_algorithm_is_its_slow_reference(rows, name, kind):
    config = AlgorithmConfig(name=name, correction=kind)
    out = policy_loss(config, *columns(rows))
    for i, (loss, ratio) in enumerate(slow_losses(config, rows)):
        assert [out.losses[i].item(), out.ratio[i].item()] == pytest.approx([loss, ratio], rel=1e-9, abs=1e-12)


@settings(max_examples=200)
@given(TOKENS, st.sampled_from(sorted(PRESETS)), st.sampled_from(["none", "truncate", "mask"]))
def test_gradients_are_those_of_the_slow_reference(rows, name, kind):
    """By differences, with everything held constant that the papers hold constant: CISPO's and the correction's
    weights, the policy before the step."""
    config = AlgorithmConfig(name=name, correction=kind, clip_low=0.2 if name != "cispo" else 1.0, clip_high=0.28)
    logp, behaviour, advantages, branches = columns(rows)
    logp.requires_grad_()
    policy_loss(config, logp, behaviour, advantages, branches).losses.sum().backward()
    constants = policy_loss(config, logp.detach(), behaviour, advantages, branches)
    weight = 1.0 if kind == "none" else correction(kind, logp.detach(), behaviour, config.correction_cap)
    old = behaviour if kind == "none" else logp.detach()

    def total(values):
        if config.surrogate == "clipped_weight":
            fixed = (logp.detach() - old).exp().clamp(1 - config.clip_low, 1 + config.clip_high)
            return (-fixed * advantages * values * weight).sum().item()
        difference = values - old
        if config.surrogate == "sequence_ratio":
            difference = torch.stack([difference[branches == b].mean() for b in branches])
        ratio = difference.exp()
        return (
            (
                -torch.minimum(ratio * advantages, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages)
                * weight
            )
            .sum()
            .item()
        )

    step = 1e-6
    for i in range(len(rows)):
        bump = torch.zeros(len(rows), dtype=torch.float64)
        bump[i] = step
        slope = (total(logp.detach() + bump) - total(logp.detach() - bump)) / (2 * step)
        ratios = constants.ratio if kind == "none" else torch.ones(1)
        if any(abs(r - edge) < 1e-4 for r in ratios.tolist() for edge in (1 - config.clip_low, 1 + config.clip_high)):
            continue  # at the corner there is no derivative
        assert logp.grad[i].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [
        (1.0, 1.0, True),
        (1.0, -1.0, True),
        (1.5, 1.0, False),  # above 1 + high and wanted more: enough
        (1.5, -1.0, True),  # above 1 + high but wanted less: goes back
        (0.5, -1.0, False),  # below 1 - low and wanted less: enough
        (0.5, 1.0, True),
        (1.25, 1.0, True),  # inside the wider upper bound
        (0.75, -1.0, False),  # outside the narrower lower bound
    ],
)
def test_a_clipped_token_has_no_gradient_every_other_has_the_ratios_and_both_are_counted(ratio, advantage, moves):
    logp = tensor([math.log(ratio)]).requires_grad_()
    out = policy_loss(AlgorithmConfig(name="dapo"), logp, tensor([0.0]), tensor([advantage]), torch.tensor([0]))
    out.losses.sum().backward()
    assert logp.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)
    assert (out.clipped_low + out.clipped_high).item() == (not moves)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("kind", ["none", "truncate", "mask"])
def test_on_policy_every_algorithm_is_the_policy_gradient(name, kind):
    """GSPO's is spread over its sequence: its mean."""
    logp, advantage = tensor([-0.3, -2.0]).requires_grad_(), 2.0
    out = policy_loss(
        AlgorithmConfig(name=name, correction=kind), logp, logp.detach(), tensor([advantage] * 2), torch.tensor([0, 0])
    )
    out.losses.sum().backward()
    assert out.ratio.tolist() == [1.0, 1.0] and logp.grad.tolist() == pytest.approx([-advantage] * 2)


@settings(max_examples=200)
@given(TOKENS, st.booleans())
def test_by_turn_gspo_has_the_same_losses_and_where_a_branch_has_one_advantage_the_same_gradients(rows, one):
    rows = [(*row[:2], float(row[3] - 1), row[3]) for row in rows] if one else rows
    found = []
    for credit in ("episode", "turn"):
        logp, behaviour, advantages, branches = columns(rows)
        logp.requires_grad_()
        out = policy_loss(AlgorithmConfig(name="gspo", credit=credit), logp, behaviour, advantages, branches)
        out.losses.sum().backward()
        found.append((out.losses.tolist(), logp.grad.tolist()))
    (losses, gradients), (by_turn, gradients_by_turn) = found
    assert by_turn == losses
    assert not one or gradients_by_turn == pytest.approx(gradients, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("credit, wanted", [("episode", [-0.5, -0.5]), ("turn", [-2.0, 1.0])])
def test_only_token_by_token_does_gspo_tell_the_calls_of_a_branch_apart(credit, wanted):
    logp = tensor([-0.3, -2.0]).requires_grad_()
    config = AlgorithmConfig(name="gspo", credit=credit)
    out = policy_loss(config, logp, logp.detach(), tensor([2.0, -1.0]), torch.tensor([0, 0]))
    out.losses.sum().backward()
    assert logp.grad.tolist() == pytest.approx(wanted)


def test_a_mask_drops_what_a_cap_only_bounds():
    current, behaviour = tensor([0.0, 0.0, 0.0]), tensor([-1.0, 0.0, 1.0])  # weights e, 1, 1/e
    assert correction("truncate", current, behaviour, 2.0).tolist() == pytest.approx([2.0, 1.0, math.exp(-1)])
    assert correction("mask", current, behaviour, 2.0).tolist() == [0.0, 1.0, 0.0]


def test_the_kl_term_pulls_towards_the_reference():
    config = AlgorithmConfig(kl_coefficient=0.5)
    logp = tensor([-1.0, -3.0]).requires_grad_()
    out = policy_loss(
        config, logp, logp.detach(), tensor([0.0, 0.0]), torch.tensor([0, 1]), reference=tensor([-2.0, -2.0])
    )
    assert out.losses.tolist() == pytest.approx((0.5 * low_variance_kl(logp, tensor([-2.0, -2.0]))).tolist())
    out.losses.sum().backward()
    assert logp.grad[0] > 0 > logp.grad[1]


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=6))
def test_the_kl_estimate_is_never_negative_and_zero_only_where_they_agree(rows):
    policy, reference = (tensor(list(column)) for column in zip(*rows))
    got = low_variance_kl(policy, reference).tolist()
    for (p, r), value in zip(rows, got):
        assert value >= -1e-15  # exp(d) - d - 1 rounds to that for d near 0
        assert value == pytest.approx(math.exp(r - p) - (r - p) - 1, rel=1e-12, abs=1e-15)
        assert (value > 0) or abs(p - r) < 1e-7


def test_the_kl_estimate_is_unbiased():
    """Its mean under the policy is the KL divergence itself, summed over a whole small vocabulary."""
    policy, reference = log_softmax([0.1, 2.0, -1.0, 0.5]), log_softmax([1.0, 0.0, 0.3, -2.0])
    exact = sum(math.exp(p) * (p - r) for p, r in zip(policy, reference))
    assert (tensor(policy).exp() * low_variance_kl(tensor(policy), tensor(reference))).sum().item() == pytest.approx(
        exact
    )


@pytest.mark.parametrize("tokens, wanted", [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (300, -1.0)])
def test_overlong_episodes_lose_reward_within_the_buffer(tokens, wanted):
    assert overlong_penalty(tokens, 100, 20) == wanted and overlong_penalty(tokens, 100, 0) == 0.0


def rows_of(shape):
    """(trajectory, trained tokens) -> samples."""
    return [
        Sample(
            "g",
            f"t{t}",
            i,
            (0,) * (n + 1),
            tuple(range(n + 1)),
            (0,) + (1,) * n,
            (0.0,) * (n + 1),
            (0.0,) * (n + 1),
            (0,) * (n + 1),
        )
        for i, (t, n) in enumerate(shape)
    ]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), min_size=1, max_size=12))
def test_the_weighted_sum_is_the_mean_that_the_name_says(shape):
    rows = rows_of(shape)
    losses = [[float((3 * i + j) % 7) for j in range(n)] for i, (_, n) in enumerate(shape)]
    total = lambda kind, **more: sum(sum(losses[i]) * w for i, w in enumerate(row_weights(kind, rows, 50.0, **more)))
    trajectories = {t: [x for i, (u, _) in enumerate(shape) if u == t for x in losses[i]] for t, _ in shape}
    everything = [x for row in losses for x in row]
    assert total("token") == pytest.approx(fmean(everything))
    assert total("sequence") == pytest.approx(fmean(map(fmean, losses)))
    assert total("trajectory") == pytest.approx(fmean(map(fmean, trajectories.values())))
    assert total("constant") == pytest.approx(sum(everything) / (50.0 * len(trajectories)))
    # those that are not trained count
    assert total("constant", trajectories=40) == pytest.approx(sum(everything) / 2000.0)


def test_no_rows_have_no_weights_and_a_wrong_name_is_an_error():
    assert [row_weights(kind, [], 1.0) for kind in ("token", "sequence", "trajectory", "constant")] == [[]] * 4
    with pytest.raises(ValueError, match="token, sequence, trajectory or constant"):
        row_weights("tokens", [], 1.0)


def test_a_name_sets_what_its_paper_says_and_every_entry_can_be_set_beside_it():
    clip_high = [AlgorithmConfig(name="dapo").clip_high, AlgorithmConfig(name="dapo", clip_high=0.3).clip_high]
    assert (AlgorithmConfig().aggregation, clip_high) == ("trajectory", [0.28, 0.3])
    assert AlgorithmConfig.model_validate({"name": "dr_grpo"}).aggregation == "constant"
