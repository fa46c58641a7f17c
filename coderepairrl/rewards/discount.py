"""What a model call costs: rewards.discount_per_call."""


def discounted(reward: float, calls: int, discount: float) -> float:
    """R discount^(n - 1) of an episode of n calls, for R > 0.

    R <= 0 stays as it is: multiplied it would come nearer to 0, and a failure would be the better the longer it took.
    So a longer episode is never worth more, and of two of the same length the better one stays the better one.
    """
    return reward * discount ** max(0, calls - 1) if reward > 0 else reward
