"""A step's numbers: what is none ends the run before anything is done with it, and what had nothing to be measured on
has no value."""

import importlib.util
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from pydantic import ValidationError

from coderepairrl.errors import EngineError
from coderepairrl.files import write_json, write_jsonl
from coderepairrl.gateway import SamplingConfig, TrainedSamplingConfig
from coderepairrl.rollout import buffer, trajectory_files
from coderepairrl.rollout.evaluations import EvaluationConfig
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.run.metrics import Metrics
from coderepairrl.training import finite
from coderepairrl.training.algorithms import Surrogate
from coderepairrl.training.step_log import GAP_BINS, StepLog, line, of_episodes, quantile
from coderepairrl.training.trainer import Judged, Waited
from coderepairrl.types import Call, Outcome, Trajectory, Verdict


class Alone:
    """What the log needs of an engine, of one rank."""

    rank, leads_row, device, steps = 0, True, torch.device("cpu"), 1

    def sum(self, values):
        return list(values)

    def max(self, values):
        return [math.inf if math.isnan(value) else value for value in values]


def log_of(run, max_gap=None, dtype="float32", autocast=False):
    config = SimpleNamespace(
        training=SimpleNamespace(
            max_gap=max_gap, evaluate_every=0, keep_checkpoints=1, algorithm=SimpleNamespace(kl_coefficient=0.0)
        ),
        wandb=None,
        engine=SimpleNamespace(dtype=dtype, autocast=autocast),
        rollout=SimpleNamespace(server=SimpleNamespace(dtype=dtype)),
        model_dump=lambda mode: {},
    )
    return StepLog(Alone(), run, config)


def add(log, gap=1e-6, tokens=4, staleness=0, **spoiled):
    """One micro-batch whose logprobs are `gap` from vLLM's; spoiled: what is NaN or infinite in its last token."""
    values = {
        name: torch.full((tokens,), value)
        for name, value in (("logprobs", -1.0), ("entropy", 0.5), ("ratio", 1.0), ("behaviour", -1.0 - gap))
    }
    for name, value in spoiled.items():
        if name in values:
            values[name][-1] = value
    zeros = torch.zeros(tokens)
    micro = SimpleNamespace(
        token_ids=torch.zeros(1, 9), staleness=torch.full((tokens,), staleness), behaviour_logprobs=values["behaviour"]
    )
    log.add(
        micro,
        values["logprobs"],
        None,
        values["entropy"],
        Surrogate(zeros, values["ratio"], zeros, zeros),
        torch.tensor(spoiled.get("loss", 0.25)),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "logprobs", "behaviour", "entropy", "ratio"])
def test_what_is_no_number_ends_the_run(tmp_path, name, value):
    """Also when it comes before or after sound micro-batches: a maximum must not lose it."""
    for before, after in ((1, 0), (0, 1), (0, 0)):
        log = log_of(tmp_path, max_gap=1e9)
        for spoiled in [{}] * before + [{name: value}] + [{}] * after:
            add(log, **spoiled)
        with pytest.raises(EngineError, match=r"^step 3: .*(nan|inf).*nothing of this step was published or saved"):
            log.check(3, 1.0)


@pytest.mark.parametrize(
    "dtype, autocast, temperature, bound",
    [
        ("float32", False, 1.0, 0.001),
        ("float32", False, 0.1, 0.01),
        ("float32", False, 1.5, 0.001),
        ("float32", True, 1.0, 3.0),
        ("bfloat16", False, 1.0, 3.0),
    ],
)
def test_a_gap_over_the_bound_ends_the_run(tmp_path, dtype, autocast, temperature, bound):
    for max_gap, gap, good in (
        (None, 0.9 * bound, True),
        (None, 1.1 * bound, False),
        (2 * bound, 1.1 * bound, True),
        (0.5 * bound, 0.9 * bound, False),
    ):
        log = log_of(tmp_path, max_gap, dtype, autocast)
        add(log, gap)
        if good:
            log.check(0, temperature)
        else:
            with pytest.raises(EngineError, match="trainer and vLLM differ by .* nats .*training.max_gap"):
                log.check(0, temperature)


def test_the_bound_is_the_devices_too():
    assert (
        finite.gap_bound({"float32"}, True, 1.0)
        < finite.gap_bound({"float32"}, False, 1.0)
        < finite.gap_bound({"float32", "bfloat16"}, False, 1.0)
    )


def test_no_gap_is_lost_to_the_histogram(tmp_path):
    """Neither those below its range, nor those above it, nor zeros; quantiles never pass the largest."""
    log = log_of(tmp_path, max_gap=1e9)
    for gap in (0.0, 1e-12, 1e-3, 5e3):
        add(log, gap, tokens=1)
    assert log._gaps.sum() == 4 and log._gaps[0] == 2 and log._gaps[-1] == 1
    log.check(0, 1.0)
    found = log._of_gaps(log._gaps)
    assert found["logprob_gap_p99"] == found["logprob_gap"] == pytest.approx(5e3) and found["logprob_gap_tokens"] == 4
    alone = torch.zeros(GAP_BINS)
    alone[0] = 7
    assert quantile(0.99, alone, 0.0) == 0.0


def test_stale_tokens_measure_no_gap(tmp_path):
    log = log_of(tmp_path)
    add(log, gap=5.0, staleness=1)
    log.check(0, 1.0)
    assert log._of_gaps(log._gaps) == {"logprob_gap_tokens": 0} and log._of_tokens()["staleness_mean"] == 1.0


def episode(number, outcome=Outcome.SUBMITTED, verdict=None, calls=()):
    return Trajectory(
        f"a1-p0-{number}",
        "a1-p0",
        "task",
        "train",
        0,
        calls,
        "",
        outcome,
        "",
        verdict,
        {} if verdict is None else {"tests": 1.0},
        1.0,
        1.0,
        stats={"started_at": 1.0, "generation_s": 0.5, "grading_s": 0.5},
    )


CALL = Call(0, None, None, (1,), (2, 3), (-0.1, -0.2), (0, 0), "stop", False, 0.0, 0.1)
ABSENT = {
    "reward",
    "reward_std",
    "pass_rate",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "calls_per_episode",
    "loss",
    "entropy",
    "kl_to_behaviour",
    "ratio_mean",
    "ratio_max",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "logprob_gap",
    "logprob_gap_mean",
    "logprob_gap_p99",
    "staleness_mean",
    "staleness_max",
    "grad_norm",
    "trained_tokens_per_s",
}
COUNTERS = {"version": 0, "infrastructure_errors": 2, "engine_restarts": 0}


def write(run, episodes, judged, train=False):
    log = log_of(run)
    if train:
        add(log)
    log.check(0, 1.0)
    (run / "rollouts").mkdir()
    waited = Waited(episodes, buffer.statistics(episodes, ["tests"]) | COUNTERS, 0.0)
    log.write(
        0,
        waited,
        judged,
        4 if train else 0,
        0.1 if train else None,
        1e-4,
        SimpleNamespace(version=1, failed=0, seconds=0.0, proof=lambda: {}),
    )
    log.close()
    return json.loads((run / "metrics.jsonl").read_text(), parse_constant=pytest.fail)


def test_a_step_of_broken_machines_has_counts_and_no_means(tmp_path, capsys):
    broken = [episode(number, Outcome.INFRASTRUCTURE_ERROR) for number in range(2)]
    row = write(tmp_path, broken, Judged({}, {t.trajectory_id: "infrastructure_error" for t in broken}, 0, 0))
    assert not ABSENT & row.keys() and not [name for name in row if name.startswith("rewards/")]
    assert (
        row["outcome/infrastructure_error"],
        row["tokens_trained"],
        row["logprob_gap_tokens"],
        row["zero_variance_groups"],
    ) == (2, 0, 0, 0)
    assert capsys.readouterr().out.startswith("step 0: pass rate -  reward -  entropy -  gap -  waited 0.0 s")


def test_a_step_that_trained_has_all(tmp_path, capsys):
    verdict = Verdict(True, "junit+canary", {}, {}, (), "", 0.1)
    row = write(
        tmp_path,
        [episode(0, verdict=verdict, calls=(CALL,) * 2), episode(1, Outcome.INFRASTRUCTURE_ERROR)],
        Judged({}, {}, 1, 1),
        train=True,
    )
    # of the sound episode
    assert (
        row.keys() >= ABSENT
        and row["pass_rate"] == row["frac_reward_zero_std"] == 1.0
        and row["calls_per_episode"] == 2.0
    )
    assert capsys.readouterr().out.startswith(
        "step 0: pass rate 1.000  reward 1.000  entropy 0.500  gap 9.5e-07  waited 0.0 s"
    )


def test_a_rate_of_tests_that_did_not_run_is_none():
    """A reward without tests: whether tasks were repaired is not known."""
    stats = buffer.statistics([episode(0), episode(1)], [])
    assert "pass_rate" not in stats and stats["reward"] == 1.0
    assert "pass_rate" not in of_episodes(Waited([episode(0)], stats | COUNTERS, 0.0), Judged({}, {}, 0, 1)) and line(
        {}
    ).startswith("pass rate -")


def test_the_statistics_of_no_episode():
    assert buffer.statistics([], ["tests"]) == {"seconds": 0.0, "outcomes": {}, "tokens": 0, "parts": {}}


def test_a_final_gap_is_measured_or_has_no_value(tmp_path):
    log = log_of(tmp_path)
    log.engine.row_rank, log.engine.row_ranks, log.engine.hidden_size = 0, 1, 8
    log.check_final_weights(Waited([episode(0)], {}, 0.0), 1.0, 64)
    assert json.loads((tmp_path / "final_gap.json").read_text()) == {"tokens": 0}
    for value, bad in ((-0.1, False), (math.nan, True), (-5.0, True)):
        log = log_of(tmp_path)
        (tmp_path / "final_gap.json").unlink(missing_ok=True)
        log.engine.row_rank, log.engine.row_ranks, log.engine.hidden_size = 0, 1, 8
        log.engine.logprobs = lambda micro, temperature, value=value: (torch.tensor([value, -0.2]), None)
        if bad:
            with pytest.raises(EngineError, match="after the last step"):
                log.check_final_weights(Waited([episode(0, calls=(CALL,))], {}, 0.0), 1.0, 64)
            assert not (tmp_path / "final_gap.json").exists()
        else:
            log.check_final_weights(Waited([episode(0, calls=(CALL,))], {}, 0.0), 1.0, 64)
            found = json.loads((tmp_path / "final_gap.json").read_text())
            assert found["tokens"] == 2 and found["logprob_gap"] == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def fine_tuning(tmp_path):
    """The log of a run without evaluation; its engine is at step 1."""
    specification = importlib.util.spec_from_file_location("train_sft", ROOT / "scripts" / "train_sft.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    config = program.SFTConfig(
        model="m",
        output=str(tmp_path / "model"),
        sources=[{"path": "a.jsonl", "steps": 1}],
        engine={"learning_rate": 1e-3},
    )
    return program.Log(Alone(), config, [])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_fine_tuning_ends_too(fine_tuning, value):
    logprobs = torch.tensor([-0.5, value, -0.5])
    fine_tuning.add(SimpleNamespace(advantages=torch.ones(3), token_ids=torch.zeros(1, 5)), logprobs)
    with pytest.raises(EngineError, match="^step 1: loss is (nan|inf)"):
        fine_tuning.check()


def test_a_fine_tuning_step_in_which_the_assistant_said_nothing_has_no_loss(fine_tuning, tmp_path):
    fine_tuning.add(
        SimpleNamespace(advantages=torch.full((3,), 0.5), token_ids=torch.zeros(1, 5)), torch.tensor([-0.5, -1.0, -0.5])
    )
    fine_tuning.check()
    fine_tuning.write(0.1, 1e-3)
    row = json.loads((tmp_path / "sft_metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert "loss" not in row and (row["num_tokens"], row["grad_norm"]) == (5, 0.1)
    fine_tuning.close({})
    assert "loss" not in json.loads((tmp_path / "sft_summary.json").read_text())


@pytest.mark.parametrize("temperature", [0, 0.0, -1, 0.009, 2.1, math.nan, math.inf, -math.inf])
def test_a_temperature_that_nothing_can_be_trained_at_is_refused(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        TrainedSamplingConfig(temperature=temperature)
    if temperature != 0:
        for config in (SamplingConfig, EvaluationConfig):
            with pytest.raises(ValidationError, match="temperature"):
                config(temperature=temperature)


def test_greedy_evaluation_is_scored_at_temperature_1():
    assert [EvaluationConfig(temperature=value).scored_temperature for value in (0, 0.01, 0.7, 1, 2)] == [
        1.0,
        0.01,
        0.7,
        1.0,
        2.0,
    ]
    assert EvaluationConfig(temperature=0).temperature == 0


def test_no_file_of_a_run_holds_what_is_no_json(tmp_path):
    for value in (math.nan, math.inf, -math.inf):
        for writing in (
            lambda: write_json(tmp_path / "a.json", {"x": [value]}),
            lambda: write_jsonl(tmp_path / "a.jsonl", [{"x": value}]),
            lambda: Ledger(tmp_path / "ledger.jsonl").write("graded", "g", rewards=[value]),
            lambda: trajectory_files.write(tmp_path / "a.parquet", [], {"reward": value}),
            lambda: trajectory_files.write(
                tmp_path / "a.parquet", [episode(0, verdict=Verdict(True, "log", {}, {}, (), "", value))], {}
            ),
        ):
            with pytest.raises(ValueError, match="JSON compliant"):
                writing()
        with pytest.raises(EngineError, match="step 4: loss is"):
            Metrics(tmp_path / "metrics.jsonl").log(4, {"loss": value})
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "ledger.jsonl").read_text() == "" and not list(
        tmp_path.glob("a.*[!p]")
    )
