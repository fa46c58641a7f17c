"""One conversation or trajectory -> rows of supervised fine-tuning: token ids, and each token's weight in the loss.

A conversation is tokenised as the gateway would have recorded it, had the policy said what the assistant says: prompts
are rendered, the assistant's turns are what a policy would have to sample, and each next prompt extends what is there.
What comes after the last turn is left out. Where a template rewrites earlier turns, the next turn starts another row,
which shares its prefix with the one before. Trajectories keep the ids that were sampled.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coderepairrl.errors import GatewayError
from coderepairrl.gateway.messages import normalise
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.gateway.shown import left_out, shape_of
from coderepairrl.sft.source_config import TrajectoriesSource
from coderepairrl.training import batch
from coderepairrl.types import Outcome, Trajectory


@dataclass(frozen=True)
class TokenRow:
    token_ids: Sequence[int]
    weights: Sequence[float]  # of each token's loss


@dataclass(frozen=True)
class Conversation:
    key: str  # equal for what should not be divided between training and evaluation
    rows: tuple[TokenRow, ...]


@dataclass(frozen=True)
class LeftOut:
    reason: str


def from_chat(raw: dict, renderer: Renderer, context_weight: float) -> Conversation | LeftOut:
    """Raises GatewayError for messages that are none, or that the template refuses. `key` is of what comes before the
    assistant's first turn."""
    if not isinstance(raw, dict) or not isinstance(raw.get("messages"), list):
        raise GatewayError("there is no list of messages")
    messages, tools = [normalise(message) for message in raw["messages"]], raw.get("tools") or None
    if tools and not (
        isinstance(tools, list)
        and all(isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in tools)
    ):
        raise GatewayError("each of tools must be an object with a function")
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = {i: float(raw["messages"][i].get("train", True)) for i in turns}
    if not any(trained.values()):
        return LeftOut("no assistant's turn to learn")
    rows: list[tuple[list[int], list[float]]] = []
    prompt, said, last = None, (), 0
    for i in turns:
        prompt = (
            renderer.extend(prompt, said, "stop", messages[: last + 1], messages[last + 1 : i], tools) if rows else None
        )
        if prompt is None:
            prompt = renderer.render(messages[:i], tools)
            rows.append(([], []))
        ids, weights = rows[-1]
        said, last = renderer.turn(messages[i], tools), i
        weights += [context_weight if len(rows) == 1 else 0.0] * (len(prompt) - len(ids)) + [trained[i]] * len(said)
        ids[:] = prompt + said
    _refuse_what_is_not_shown(messages, turns, tools, renderer)
    key = hashlib.sha256(json.dumps(messages[: turns[0]], sort_keys=True).encode()).hexdigest()
    return conversation(key, rows)


def _refuse_what_is_not_shown(
    messages: list[dict], turns: Sequence[int], tools: list[dict] | None, renderer: Renderer
) -> None:
    """Raises GatewayError where the template drops a part of a turn, or the answers to it: something else would be
    learnt."""
    for i in turns:
        answered = i != turns[-1] and messages[i + 1]["role"] == "tool"
        lost = left_out(renderer, shape_of(messages[i], answered, bool(tools)))
        if lost:
            raise GatewayError(
                f"the model's chat template leaves out {' and '.join(lost)} of message {i + 1} of "
                f"{len(messages)}, and that would be learnt"
            )


def from_trajectory(
    trajectory: Trajectory, source: TrajectoriesSource, context_weight: float
) -> Conversation | LeftOut:
    """One row a branch, as in reinforcement learning. `key` is the task's."""
    if trajectory.outcome == Outcome.INFRASTRUCTURE_ERROR or trajectory.split != source.split:
        return LeftOut(
            "infrastructure_error" if trajectory.split == source.split else f"a task of split {trajectory.split}"
        )
    if source.min_reward is not None and trajectory.reward < source.min_reward:
        return LeftOut("reward below min_reward")
    if source.resolved and not (trajectory.verdict and trajectory.verdict.resolved):
        return LeftOut("not resolved")
    if source.submitted and trajectory.outcome != Outcome.SUBMITTED:
        return LeftOut("not submitted")
    rows, calls = [], trajectory.calls
    for path, sample in zip(batch.branches(calls), batch.samples(trajectory, [1.0] * len(calls)), strict=True):
        weights = np.full(len(sample.token_ids), 0.0 if rows else context_weight)
        for call in path:
            # another branch may train it
            weights[len(call.prompt_ids) : len(call.prompt_ids) + len(call.completion_ids)] = 0.0
        # negative: not sampled, or not to be learnt
        rows.append((sample.token_ids, np.maximum(weights, np.asarray(sample.policy_versions) >= 0)))
    return conversation(hashlib.sha256(trajectory.task_id.encode()).hexdigest(), rows)


def conversation(key: str, rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Conversation | LeftOut:
    """Of (token ids, weights); rows that teach nothing are dropped."""
    # nothing predicts the first token
    kept = tuple(TokenRow(ids, (0.0, *weights[1:])) for ids, weights in rows if any(weights[1:]))
    return Conversation(key, kept) if kept else LeftOut("nothing to learn")
