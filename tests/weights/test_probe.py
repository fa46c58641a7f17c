"""The probe's arithmetic: what passes, what never does, and that an episode under unproven weights is not trained."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_helpers import episode, judged

from coderepairrl.files import read_json
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.training.engine_config import EngineConfig
from coderepairrl.training.trainer import books
from coderepairrl.weights.probe import KEPT_VERSIONS, LARGEST, TOKENS, Probe, difference, read, token_ids, write
from coderepairrl.weights.publisher import micro_batch

BOUND = 0.01
LOGPROBS = st.lists(st.floats(-30, 0), min_size=1, max_size=20)


def passes(expected, found) -> bool:
    gap = difference(expected, found)
    return gap.mean <= BOUND and gap.largest <= LARGEST * BOUND


@given(LOGPROBS, st.data())
def test_what_is_not_a_number_or_missing_never_passes(logprobs, data):
    place = data.draw(st.integers(0, len(logprobs) - 1))
    for wrong in (math.nan, None, math.inf, -math.inf, -9999.0):
        for found in ([*logprobs[:place], wrong, *logprobs[place + 1 :]], logprobs[:place], [*logprobs, 0.0]):
            assert not passes(logprobs, found)
    assert not passes([*logprobs[:place], math.nan, *logprobs[place + 1 :]], logprobs)
    assert passes(logprobs, logprobs)


@given(LOGPROBS, st.floats(0, 1))
def test_it_is_the_mean_that_counts_and_a_single_token_ten_times_as_far(logprobs, off):
    assert passes(logprobs, [x + off for x in logprobs]) == (fmean_of(logprobs, off) <= BOUND)
    one = [logprobs[0] + off, *logprobs[1:]]
    assert not passes(logprobs, one) or off <= LARGEST * BOUND + 1e-9 and off / len(logprobs) <= BOUND + 1e-9


def fmean_of(logprobs, off) -> float:
    return difference(logprobs, [x + off for x in logprobs]).mean


@given(st.integers(2, 200_000), st.integers(3, 5000))
def test_the_row_is_the_same_every_time_in_the_vocabulary_and_fits_with_one_token_more(vocabulary, length):
    row = token_ids(vocabulary, length)
    assert row == token_ids(vocabulary, length) and 2 <= len(row) == min(TOKENS, length - 1)
    assert 0 <= min(row) and max(row) < vocabulary


def test_the_trainer_is_asked_for_every_token_but_the_first():
    micro = micro_batch((7, 3, 3, 9))
    assert micro.token_ids.tolist() == [[7, 3, 3, 9]]
    assert micro.sources.tolist() == [0, 1, 2] and micro.targets.tolist() == [3, 3, 9]


def test_the_file_holds_the_newest_versions(tmp_path):
    (tmp_path / "policy").mkdir()
    assert read(tmp_path, 0) is None
    probes = [Probe(version, (1, 2, 3), (-0.5, -float(version)), BOUND) for version in range(KEPT_VERSIONS + 2)]
    for probe in probes:
        write(tmp_path, probe)
    assert [read(tmp_path, probe.version) for probe in probes] == [None, None, *probes[2:]]
    assert len(read_json(tmp_path / "policy" / "probe.json")["logprobs"]) == KEPT_VERSIONS


@pytest.mark.parametrize(
    ("server", "trainer", "bound"),
    [
        ({"dtype": "float32"}, {}, 2e-4),
        ({"dtype": "bfloat16"}, {}, 0.2),
        ({"dtype": "float32"}, {"autocast": True}, 0.2),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}, 0.2),
        ({"dtype": "bfloat16", "probe_bound": 3.0}, {}, 3.0),
    ],
)
def test_the_bound_is_that_of_the_coarser_side(server, trainer, bound):
    engine = EngineConfig(learning_rate=1.0, **trainer)
    assert (
        ServerConfig(kv_cache_mib=1, **server).largest_gap(exact=engine.dtype == "float32" and not engine.autocast)
        == bound
    )


def test_what_may_be_off_grows_with_the_logits():
    assert [Probe(0, (1, 2, 3), (-x, -3 * x), BOUND).allowed for x in (0.5, 5.0, 20.0)] == [BOUND, BOUND, 4 * BOUND]


def test_one_token_of_unproven_weights_masks_its_episode():
    """Also where it is too old, too; the tokens of the others are trained, and its reward is not compared with
    theirs."""
    rows = [
        episode("good", "g", 1.0),
        episode("mixed", "g", 0.0, versions=(2, 3)),
        episode("old", "g", 0.5, versions=(1, 3)),
    ]
    out = judged(rows, 2, unproven={2})
    assert out.advantage.keys() == {"good", "old"}
    assert out.masked == {"mixed": "unproven"} and books(rows, out) == {"g": {"trained": 4, "masked": {"unproven": 2}}}
    assert judged(rows, 0, unproven={1, 2}).masked == {"mixed": "unproven", "old": "unproven", "good": "zero_variance"}
