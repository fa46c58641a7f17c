"""Trajectories -> samples -> micro-batches: one packed row each, with the tokens that are trained as a list beside
it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from coderepairrl.training import packing
from coderepairrl.training.packing import Piece
from coderepairrl.types import Call, Sample, Trajectory


@dataclass(frozen=True)
class Layout:
    """Where the nodes of a packed row lie, and the path from the root to each, which its tokens attend to. Offsets have
    one entry more than there are nodes."""

    query_offsets: torch.Tensor  # int32: node n's tokens are row[query_offsets[n] : query_offsets[n + 1]]
    key_offsets: torch.Tensor  # int32: its path is path_index[key_offsets[n] : key_offsets[n + 1]]
    path_index: torch.Tensor | None  # (K,) place in the row of every key; None: each path is its node, K = T
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]

    def to(self, device: torch.device) -> "Layout":
        move = lambda tensor: None if tensor is None else tensor.to(device, non_blocking=True)
        return Layout(
            move(self.query_offsets),
            move(self.key_offsets),
            move(self.path_index),
            self.query_lengths,
            self.key_lengths,
        )


@dataclass(frozen=True)
class MicroBatch:
    """A packed row of T tokens and the N of them that are trained (a token that several samples share can be there
    several times).

    token_ids, position_ids (1, T). The rest is (N,): the logprob of `targets` comes from the row's output at `sources`.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: Layout
    sources: torch.Tensor
    targets: torch.Tensor
    behaviour_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor  # of each token's loss in the step's
    staleness: torch.Tensor  # optimizer steps between the weights that sampled the token and those before this step
    branches: torch.Tensor  # 0..: tokens of one sample have the same number

    def to(self, device: torch.device) -> "MicroBatch":
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


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


def samples(trajectory: Trajectory, advantages: Sequence[float]) -> list[Sample]:
    """One sample a branch. `advantages`: one a call, of all of its tokens.

    A call that several branches share is trained in the first of them only, with its own advantage.
    """
    name, calls = trajectory.trajectory_id, trajectory.calls
    assert len(advantages) == len(calls), f"{name}: {len(advantages)} advantages of {len(calls)} calls"
    out, trained = [], set()
    for branch_id, path in enumerate(branches(calls)):
        leaf = path[-1]
        ids = leaf.prompt_ids + leaf.completion_ids
        mask, logprobs, versions, own = [0] * len(ids), [0.0] * len(ids), [-1] * len(ids), [0.0] * len(ids)
        for call in path:
            start, stop = len(call.prompt_ids), len(call.prompt_ids) + len(call.completion_ids)
            assert ids[start:stop] == call.completion_ids, f"{name}: call {call.index} is no part of its branch"
            if call.index not in trained:
                trained.add(call.index)
                mask[start:stop] = [1] * (stop - start)
                logprobs[start:stop] = call.logprobs
                versions[start:stop] = call.policy_versions
                own[start:stop] = [advantages[call.index]] * (stop - start)
        out.append(
            Sample(
                trajectory.group_id,
                name,
                branch_id,
                ids,
                tuple(range(len(ids))),
                tuple(mask),
                tuple(logprobs),
                tuple(own),
                tuple(versions),
            )
        )
    return out


def trained_tokens(rows: Sequence[Sample]) -> dict[str, int]:
    """Trajectory id -> how many of its tokens are trained, over all of its branches."""
    out: dict[str, int] = {}
    for row in rows:
        out[row.trajectory_id] = out.get(row.trajectory_id, 0) + sum(row.loss_mask)
    return out


def micro_batches(
    rows: Sequence[Sample],
    weights: Sequence[float],
    tokens: int,
    rank: int,
    world_size: int,
    *,
    hidden_size: int,
    staleness_of: Mapping[int, int] | None = None,
    share_prefixes: bool = True,
) -> list[MicroBatch]:
    """This rank's micro-batches of at most `tokens` tokens (or one longer sample); every rank gets equally many, as
    ZeRO-3's collectives need.

    `weights`: of a trained token, for each row. `staleness_of`: policy version -> staleness; without it, 0.
    """
    if not any(any(row.loss_mask) for row in rows):
        return []
    dealt = packing.deal(packing.pieces(rows, tokens, share_prefixes), tokens, world_size, hidden_size)[rank]
    return [collate(parts, rows, weights, staleness_of or {}) for parts in dealt]


def collate(
    parts: Sequence[Piece], rows: Sequence[Sample], weights: Sequence[float], staleness_of: Mapping[int, int]
) -> MicroBatch:
    """A micro-batch without pieces is one token without loss: it keeps the ranks in step."""
    if not parts:
        alone = np.zeros(1, dtype=np.int64)
        parts = [Piece((), (), alone, alone, (packing.Node(0, 1, alone),))]
    offsets = np.cumsum([0] + [piece.size for piece in parts])
    columns: dict[str, list] = {
        name: []
        for name in ("sources", "targets", "behaviour_logprobs", "advantages", "weights", "staleness", "branches")
    }
    branch = 0
    for piece, offset in zip(parts, offsets, strict=False):
        for index, places in zip(piece.samples, piece.places, strict=True):
            row = rows[index]
            at = np.flatnonzero(row.loss_mask)
            at = at[at > 0]  # nothing predicts the first token
            picked = lambda column: np.asarray(column)[at]
            columns["sources"].append(places[at - 1] + offset)
            columns["targets"].append(picked(row.token_ids))
            columns["behaviour_logprobs"].append(picked(row.behaviour_logprobs))
            columns["advantages"].append(picked(row.advantages))
            columns["weights"].append(np.full(len(at), weights[index]))
            columns["staleness"].append(
                np.array([staleness_of.get(v, 0) for v in picked(row.policy_versions).tolist()], dtype=np.int64)
            )
            columns["branches"].append(np.full(len(at), branch))
            branch += 1
    column = lambda name, dtype: torch.from_numpy(np.concatenate([np.zeros(0), *columns[name]])).to(dtype)
    whole, exact = torch.float32, torch.long
    return MicroBatch(
        torch.from_numpy(np.concatenate([piece.token_ids for piece in parts]))[None].long(),
        torch.from_numpy(np.concatenate([piece.position_ids for piece in parts]))[None].long(),
        layout(parts, offsets),
        column("sources", exact),
        column("targets", exact),
        column("behaviour_logprobs", whole),
        column("advantages", whole),
        column("weights", whole),
        column("staleness", exact),
        column("branches", exact),
    )


def layout(parts: Sequence[Piece], offsets: np.ndarray) -> Layout:
    nodes = [(node, offset) for piece, offset in zip(parts, offsets, strict=False) for node in piece.nodes]
    queries, keys = tuple(node.stop - node.start for node, _ in nodes), tuple(len(node.path) for node, _ in nodes)
    shared = queries != keys
    path_index = torch.from_numpy(np.concatenate([node.path + offset for node, offset in nodes])) if shared else None
    edges = lambda lengths: torch.from_numpy(np.cumsum((0, *lengths))).to(torch.int32)
    return Layout(edges(queries), edges(keys), path_index, queries, keys)
