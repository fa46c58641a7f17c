"""Samples -> packed rows: whatever is packed with whatever, each token sees exactly its own sequence, and every trained
token is there once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.training import batch, packing
from coderepairrl.types import Sample

# few token ids, so that prefixes are shared by chance as well
ROWS = st.lists(
    st.tuples(
        st.integers(0, 2), st.lists(st.integers(0, 2), min_size=1, max_size=14), st.randoms(use_true_random=False)
    ),
    max_size=14,
)


def make(rows) -> list[Sample]:
    out = []
    for number, (group, ids, rng) in enumerate(rows):
        mask = [0] + [rng.randrange(2) for _ in ids[1:]]
        column = lambda scale: tuple(scale * (number * 100 + t) * on for t, on in enumerate(mask))
        out.append(
            Sample(
                f"g{group}",
                f"t{number}",
                0,
                tuple(ids),
                tuple(range(len(ids))),
                tuple(mask),
                column(-1e-3),
                column(1.0),
                tuple(number if on else -1 for on in mask),
            )
        )
    return out


def seen_by(piece: packing.Piece) -> dict[int, list[int]]:
    """Place in the piece -> the places that its query may look at, in order, itself last."""
    out = {}
    for node in piece.nodes:
        new = node.stop - node.start
        assert node.path[-new:].tolist() == list(range(node.start, node.stop))
        out |= {node.start + i: node.path[: len(node.path) - new + i + 1].tolist() for i in range(new)}
    return out


@settings(max_examples=300)
@given(ROWS, st.sampled_from([4, 16, 64]), st.booleans())
def test_each_token_sees_its_own_sequence_and_nothing_else(rows, tokens, share):
    samples = make(rows)
    pieces = packing.pieces(samples, tokens, share)
    assert sorted(index for piece in pieces for index in piece.samples) == list(range(len(samples)))
    for piece in pieces:
        assert len(piece.samples) == 1 or piece.size <= tokens
        seen = seen_by(piece)
        assert sorted(seen) == list(range(piece.size))
        assert piece.pairs == sum(map(len, seen.values()))
        for index, places in zip(piece.samples, piece.places, strict=True):
            assert piece.token_ids[places].tolist() == list(samples[index].token_ids)
            assert piece.position_ids[places].tolist() == list(range(len(places)))
            for t, place in enumerate(places):
                assert seen[place] == places[: t + 1].tolist()
        assert len({samples[index].group_id for index in piece.samples}) == 1


def test_what_a_group_shares_is_there_once():
    rows = [
        Sample(
            "g",
            f"t{i}",
            0,
            (*range(50), 100 + i),
            tuple(range(51)),
            (0,) * 50 + (1,),
            (0.0,) * 51,
            (1.0,) * 51,
            (0,) * 51,
        )
        for i in range(8)
    ]
    (shared,) = packing.pieces(rows, 1000)
    assert shared.size == 58 and sum(piece.size for piece in packing.pieces(rows, 1000, share_prefixes=False)) == 408
    # other groups are other tasks
    assert len(packing.pieces([replace(row, group_id=f"g{i}") for i, row in enumerate(rows)], 1000)) == 8


@settings(max_examples=300)
@given(ROWS, st.sampled_from([4, 16, 64]), st.integers(1, 4), st.booleans())
def test_every_piece_goes_to_one_rank_and_all_ranks_get_equally_many_rows(rows, tokens, ranks, share):
    pieces = packing.pieces(make(rows), tokens, share)
    dealt = packing.deal(pieces, tokens, ranks, hidden_size=8)
    assert len(dealt) == ranks and len({len(rows) for rows in dealt}) == 1
    found = [id(piece) for rank in dealt for row in rank for piece in row]
    assert sorted(found) == sorted(map(id, pieces))
    for rank in dealt:
        for row in rank:
            assert len(row) <= 1 or sum(piece.size for piece in row) <= tokens


def test_costs_are_even_where_lengths_are_not():
    rows = [
        Sample(
            f"g{i}",
            f"t{i}",
            0,
            (1,) * length,
            tuple(range(length)),
            (0,) + (1,) * (length - 1),
            (0.0,) * length,
            (1.0,) * length,
            (0,) * length,
        )
        for i, length in enumerate([20 + (i * 37) % 400 for i in range(100)])
    ]
    dealt = packing.deal(packing.pieces(rows, 2048), 2048, 4, hidden_size=64)
    costs = [[sum(piece.size + piece.pairs / 384 for piece in row) for row in rank] for rank in dealt]
    for at_once in zip(*costs, strict=True):
        assert max(at_once) < 1.1 * min(at_once)
    assert sum(map(len, dealt)) <= 1.3 * sum(len(row.token_ids) for row in rows) / 2048 + 4  # rows are nearly full


@settings(max_examples=200)
@given(ROWS, st.sampled_from([4, 16, 64]), st.integers(1, 3), st.booleans())
def test_every_trained_token_is_in_the_ranks_micro_batches_once(rows, tokens, world_size, share):
    samples = make(rows)
    weights = [0.5 + i for i in range(len(samples))]
    ranks = [
        batch.micro_batches(
            samples,
            weights,
            tokens,
            rank,
            world_size,
            hidden_size=8,
            staleness_of={i: 2 * i for i in range(20)},
            share_prefixes=share,
        )
        for rank in range(world_size)
    ]
    assert len({len(micros) for micros in ranks}) == 1
    found = []
    for micro in (micro for micros in ranks for micro in micros):
        before = micro.token_ids[0, micro.sources]
        position = micro.position_ids[0, micro.sources] + 1
        found += list(
            zip(
                before.tolist(),
                micro.targets.tolist(),
                position.tolist(),
                micro.advantages.tolist(),
                micro.weights.tolist(),
                micro.staleness.tolist(),
            )
        )
        assert (
            micro.token_ids.dtype == micro.targets.dtype == torch.long
            and micro.advantages.dtype == micro.weights.dtype == torch.float32
        )
        for branch in micro.branches.unique():  # a branch is one sample
            assert len({int(a) // 100 for a in micro.advantages[micro.branches == branch].tolist()}) == 1
    wanted = [
        (row.token_ids[t - 1], row.token_ids[t], t, row.advantages[t], weights[i], 2 * i)
        for i, row in enumerate(samples)
        for t, on in enumerate(row.loss_mask)
        if on
    ]
    assert len(found) == len(wanted)
    for got, exact in zip(sorted(found), sorted(wanted), strict=True):
        assert got == pytest.approx(exact)


def test_a_rank_without_rows_gets_one_token_without_loss():
    row = Sample("g", "t", 0, (5, 6), (0, 1), (0, 1), (0.0, -1.0), (0.0, 1.0), (-1, 0))
    busy, idle = (batch.micro_batches([row], [1.0], 8, rank, 2, hidden_size=8) for rank in range(2))
    assert len(busy) == len(idle) == 1 and {len(busy[0].targets), len(idle[0].targets)} == {0, 1}
    assert idle[0].token_ids.numel() >= 1
    assert batch.micro_batches([], [], 8, 0, 2, hidden_size=8) == []
