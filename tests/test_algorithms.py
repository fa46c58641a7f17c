"""Each function against a slow reference in plain Python, and the properties that the training loop relies on."""
import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.algorithms import clipped_policy_loss, grpo_advantages, low_variance_kl, token_logprobs, token_weights, weighted_cross_entropy

LOGPROBS = st.floats(-8, 0)
REWARDS = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=8)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def log_softmax(row):
    largest = max(row)
    total = largest + math.log(sum(math.exp(x - largest) for x in row))
    return [x - total for x in row]


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 7, 11), (2, 1, 5)])
def test_token_logprobs_are_those_of_each_token_given_the_ones_before(shape):
    B, T, V = shape
    torch.manual_seed(T)
    logits, ids = 3 * torch.randn(shape, dtype=torch.float64), torch.randint(V, (B, T))
    logprobs, entropy = token_logprobs(logits, ids)
    assert logprobs.shape == entropy.shape == (B, T)
    for b in range(B):
        assert logprobs[b, 0] == entropy[b, 0] == 0  # nothing predicts the first token
        for t in range(1, T):
            before = log_softmax(logits[b, t - 1].tolist())
            assert logprobs[b, t].item() == pytest.approx(before[ids[b, t]], abs=1e-12)
            assert entropy[b, t].item() == pytest.approx(-sum(math.exp(x) * x for x in before), abs=1e-12)


def test_token_logprobs_of_a_prefix_do_not_depend_on_what_follows():
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 9, 5, dtype=torch.float64), torch.randint(5, (2, 9))
    torch.testing.assert_close(token_logprobs(logits, ids)[0][:, :6], token_logprobs(logits[:, :6], ids[:, :6])[0])


def test_entropy_carries_no_gradient_and_logprobs_do():
    logits = torch.randn(1, 4, 5, requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([[0, 1, 2, 3]]))
    assert logprobs.requires_grad and not entropy.requires_grad
    logprobs.sum().backward()
    assert logits.grad[:, :-1].abs().sum() > 0 and logits.grad[:, -1].abs().sum() == 0  # the last logits predict nothing in the row


@given(REWARDS, st.booleans())
def test_advantages_follow_the_papers_equation(rewards, scale):
    got = grpo_advantages(tensor(rewards), scale).tolist()
    mean, deviation = fmean(rewards), pstdev(rewards)
    if deviation > 1e-9:  # below that the reference and torch differ by rounding alone
        assert got == pytest.approx([(r - mean) / ((deviation + 1e-6) if scale else 1) for r in rewards], rel=1e-6, abs=1e-9)
    assert sum(got) == pytest.approx(0, abs=1e-6)


@given(st.floats(-10, 10), st.integers(1, 16), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_a_group_of_equal_rewards_gets_exact_zeros(reward, size, scale, dtype):
    """Also where the mean of equal numbers is not that number: 0.1 three times in float64."""
    assert grpo_advantages(torch.full((size,), reward, dtype=dtype), scale).tolist() == [0.0] * size


def test_three_times_a_tenth_is_a_group_without_variance():
    assert not grpo_advantages(tensor([0.1, 0.1, 0.1])).any()


def clipped(logp, old, advantage, low, high):
    ratio = math.exp(logp - old)
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage), ratio


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS, st.floats(-3, 3)), min_size=1, max_size=6), st.floats(0.05, 0.9), st.floats(0.05, 2))
def test_the_clipped_loss_is_ppos(rows, low, high):
    logp, old, advantage = (tensor([list(column)]) for column in zip(*rows))
    losses, ratio = clipped_policy_loss(logp, old, advantage, low, high)
    assert losses.shape == ratio.shape == (1, len(rows))
    for i, row in enumerate(rows):
        assert [losses[0, i].item(), ratio[0, i].item()] == pytest.approx(clipped(*row, low, high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("ratio, advantage, moves", [
    (1.0, 1.0, True), (1.0, -1.0, True),
    (1.5, 1.0, False),  # above 1 + high and wanted more: enough
    (1.5, -1.0, True),  # above 1 + high but wanted less: goes back
    (0.5, -1.0, False),  # below 1 - low and wanted less: enough
    (0.5, 1.0, True),
    (1.25, 1.0, True),  # inside the wider upper bound
    (0.75, -1.0, False),  # outside the narrower lower bound
])
def test_a_clipped_token_has_no_gradient_and_every_other_has_the_ratios(ratio, advantage, moves):
    logp = tensor([[math.log(ratio)]]).requires_grad_()
    losses, _ = clipped_policy_loss(logp, tensor([[0.0]]), tensor([[advantage]]), clip_low=0.2, clip_high=0.28)
    losses.sum().backward()
    assert logp.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


def test_on_policy_the_gradient_is_the_policy_gradient():
    logp = tensor([[-0.3, -2.0]]).requires_grad_()
    losses, ratio = clipped_policy_loss(logp, logp.detach(), tensor([[2.0, -1.0]]), 0.2, 0.2)
    losses.sum().backward()
    assert ratio.tolist() == [[1.0, 1.0]] and logp.grad.tolist() == [[-2.0, 1.0]]


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
    assert (tensor(policy).exp() * low_variance_kl(tensor(policy), tensor(reference))).sum().item() == pytest.approx(exact)


@given(st.lists(st.lists(st.tuples(LOGPROBS, st.floats(0, 1)), min_size=2, max_size=2), min_size=1, max_size=4))
def test_cross_entropy_is_the_weighted_sum(rows):
    logp, weights = (tensor([[pair[i] for pair in row] for row in rows]) for i in (0, 1))
    wanted = -sum(logprob * weight for row in rows for logprob, weight in row)
    assert weighted_cross_entropy(logp, weights).item() == pytest.approx(wanted, abs=1e-9)


TOKENS = st.dictionaries(st.text(max_size=3), st.integers(1, 4000), min_size=1, max_size=12)


@given(TOKENS, st.sampled_from(["token", "trajectory"]))
def test_the_weights_of_all_tokens_of_a_step_sum_to_one(tokens_of, aggregation):
    weights = token_weights(aggregation, tokens_of)
    assert weights.keys() == tokens_of.keys()
    assert sum(weights[name] * tokens for name, tokens in tokens_of.items()) == pytest.approx(1)
    alike = weights.values() if aggregation == "token" else [weights[name] * tokens for name, tokens in tokens_of.items()]
    assert max(alike) == pytest.approx(min(alike))


@settings(max_examples=20)
@given(TOKENS)
def test_the_weighted_sum_is_the_mean_that_the_name_says(tokens_of):
    losses = {name: [float(i % 7) for i in range(tokens)] for name, tokens in tokens_of.items()}
    def total(kind):
        return sum(sum(losses[name]) * weight for name, weight in token_weights(kind, tokens_of).items())
    assert total("token") == pytest.approx(fmean([x for row in losses.values() for x in row]), abs=1e-9)
    assert total("trajectory") == pytest.approx(fmean([fmean(row) for row in losses.values()]), abs=1e-9)


def test_no_tokens_have_no_weights_and_a_wrong_name_is_an_error():
    assert token_weights("token", {}) == token_weights("trajectory", {}) == {}
    with pytest.raises(ValueError, match="token or trajectory"):
        token_weights("sequence", {"a": 1})
