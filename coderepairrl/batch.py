"""Trajectories -> samples -> micro-batches: padded (B, T) tensors of rows of similar length, the same number on every rank."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from coderepairrl.types import Call, Sample, Trajectory

LENGTH_STEP = 16  # lengths are rounded up to a multiple: few distinct shapes, which CPU kernels are compiled for


@dataclass(frozen=True)
class MicroBatch:
    """Tensors are (B, T); column t speaks of token t, also of the logprob of token t given those before it."""
    token_ids: torch.Tensor
    loss_mask: torch.Tensor  # float: 1 trained, 0 not
    behaviour_logprobs: torch.Tensor
    advantages: torch.Tensor
    trajectory_ids: tuple[str, ...]  # one a row

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(*(t.to(device) for t in (self.token_ids, self.loss_mask, self.behaviour_logprobs, self.advantages)), self.trajectory_ids)


def branches(calls: Sequence[Call]) -> list[list[Call]]:
    """The paths from a root to every leaf of the tree of calls, in order of the leaves."""
    parents = {call.parent for call in calls if call.parent_part == "completion"}
    paths = []
    for leaf in calls:
        if leaf.index in parents:
            continue
        path, node = [leaf], leaf
        while node.parent is not None and node.parent_part == "completion":
            node = calls[node.parent]
            path.append(node)
        paths.append(path[::-1])
    return paths


def samples(trajectory: Trajectory, advantage: float) -> list[Sample]:
    """One sample a branch. A call that several branches share is trained in the first of them only."""
    out, trained = [], set()
    for branch_id, path in enumerate(branches(trajectory.calls)):
        leaf = path[-1]
        ids = leaf.prompt_ids + leaf.completion_ids
        mask, logprobs, versions = [0] * len(ids), [0.0] * len(ids), [-1] * len(ids)
        for call in path:
            start, stop = len(call.prompt_ids), len(call.prompt_ids) + len(call.completion_ids)
            assert ids[start:stop] == call.completion_ids, f"{trajectory.trajectory_id}: call {call.index} is no part of its branch"
            if call.index not in trained:
                trained.add(call.index)
                mask[start:stop] = [1] * (stop - start)
                logprobs[start:stop] = call.logprobs
                versions[start:stop] = call.policy_versions
        out.append(Sample(trajectory.group_id, trajectory.trajectory_id, branch_id, ids, tuple(range(len(ids))), tuple(mask), tuple(logprobs),
                          tuple(advantage * m for m in mask), tuple(versions)))
    return out


def trained_tokens(rows: Sequence[Sample]) -> dict[str, int]:
    """Trajectory id -> how many of its tokens are trained, over all of its branches."""
    out: dict[str, int] = {}
    for row in rows:
        out[row.trajectory_id] = out.get(row.trajectory_id, 0) + sum(row.loss_mask)
    return out


def pad(rows: Sequence[Sequence], value: float, dtype: torch.dtype, width: int) -> torch.Tensor:
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows], dtype=dtype)


def rounded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def split(lengths: Sequence[int], tokens: int, parts: int) -> list[list[list[int]]]:
    """Row indices by part (rank) and micro-batch: at most `tokens` padded tokens each, equally many for every part.

    Rows of similar length go together; micro-batches are dealt to the parts in turn, so that their costs are close. A part
    that gets one less repeats nothing: it gets an empty list, which the caller turns into a batch without loss.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches, current = [], []
    for i in order:
        if current and rounded(lengths[i]) * (len(current) + 1) > tokens:
            batches.append(current)
            current = []
        current.append(i)
    if current:
        batches.append(current)
    while len(batches) % parts:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        if len(batches[largest]) > 1:  # rather halve a batch than leave a rank idle
            half = batches.pop(largest)
            batches += [half[: len(half) // 2], half[len(half) // 2 :]]
        else:
            batches.append([])
    return [batches[part::parts] for part in range(parts)]


def micro_batches(rows: Sequence[Sample], tokens: int, rank: int, world_size: int) -> list[MicroBatch]:
    """This rank's share of the rows. Every rank gets equally many micro-batches, as ZeRO-3's collectives need."""
    return [collate([rows[i] for i in indices]) for indices in split([len(r.token_ids) for r in rows], tokens, world_size)[rank]]


def collate(rows: Sequence[Sample]) -> MicroBatch:
    width = rounded(max((len(r.token_ids) for r in rows), default=1))
    rows = rows or [Sample("", "", 0, (0,), (0,), (0,), (0.0,), (0.0,), (-1,))]  # no loss: keeps the ranks in step
    column: Callable[[str, float, torch.dtype], torch.Tensor] = lambda name, value, dtype: pad([getattr(r, name) for r in rows], value, dtype, width)
    return MicroBatch(column("token_ids", 0, torch.long), column("loss_mask", 0.0, torch.float), column("behaviour_logprobs", 0.0, torch.float),
                      column("advantages", 0.0, torch.float), tuple(r.trajectory_id for r in rows))
