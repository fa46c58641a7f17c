"""The numbers of a training step, over micro-batches and ranks; rank 0 writes metrics.jsonl (docs/metrics.md)."""

import time
from collections import Counter
from pathlib import Path
from statistics import fmean, pstdev

import torch

from coderepairrl.files import write_json
from coderepairrl.rollout import infrastructure
from coderepairrl.rollout.evaluations import Evaluations
from coderepairrl.run.intervals import NOTHING
from coderepairrl.run.metrics import Metrics
from coderepairrl.training import algorithms, batch, finite
from coderepairrl.training.algorithms import Surrogate
from coderepairrl.training.batch import MicroBatch
from coderepairrl.training.engine import Engine
from coderepairrl.training.trainer import TRUNCATED, Judged, Waited, books
from coderepairrl.types import Outcome, Trajectory
from coderepairrl.weights.publisher import Publisher

SUMS = (
    "tokens",
    "ratio",
    "entropy",
    "clipped_low",
    "clipped_high",
    "kl",
    "kl_to_behaviour",
    "loss",
    "row_tokens",
    "staleness",
    "fresh",
    "gap",
)
LARGEST = ("logprob_gap", "ratio_max", "staleness_max")
GAP_BINS = 2000  # of the histogram that quantiles are read from; what lies outside is in the first or the last
GAP_RANGE = (-8.0, 2.0)  # powers of ten


class StepLog:
    """Of each step: `add` for every micro-batch, then `check`, which may end the run, then `write`.

    What had nothing to be measured on is left out.
    """

    def __init__(self, engine: Engine, run: Path, config):
        self.engine, self.run = engine, run
        self.metrics = None
        if engine.rank == 0:
            self.metrics = Metrics(run / "metrics.jsonl", config.wandb, config.model_dump(mode="json"))
        training = config.training
        self._evaluations = None
        if self.metrics:
            self._evaluations = Evaluations(run, self.metrics, training.evaluate_every, training.keep_checkpoints)
        self._max_gap = config.training.max_gap
        self._dtypes = {
            config.engine.dtype,
            config.rollout.server.dtype,
            *(["bfloat16"] if config.engine.autocast else []),
        }
        self._has_reference = config.training.algorithm.kl_coefficient > 0
        self._began = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._largest = torch.zeros(len(LARGEST), dtype=torch.float64)
        self._gaps = torch.zeros(GAP_BINS, dtype=torch.float64)

    def _enlarge(self, name: str, values: torch.Tensor) -> None:
        place = LARGEST.index(name)  # NaN stays, which Python's max may drop
        self._largest[place] = torch.maximum(self._largest[place], values.max().double().cpu())

    def add(
        self,
        micro: MicroBatch,
        logprobs: torch.Tensor,
        reference: torch.Tensor | None,
        entropy: torch.Tensor,
        out: Surrogate,
        loss: torch.Tensor,
    ) -> None:
        """Of one micro-batch; tensors (N,). `reference`: logprobs under the reference policy."""
        if not self.engine.leads_row:
            return
        if not len(logprobs):
            self._sums["row_tokens"] += micro.token_ids.numel()
            return
        logprobs = logprobs.detach()
        self._gap(logprobs, micro)
        self._enlarge("ratio_max", out.ratio)
        self._enlarge("staleness_max", micro.staleness)
        total = lambda values: values.sum().item()
        divergence = lambda other: total(algorithms.low_variance_kl(logprobs, other))
        self._sums.update(
            {
                "tokens": len(logprobs),
                "ratio": total(out.ratio),
                "entropy": total(entropy),
                "clipped_low": total(out.clipped_low),
                "clipped_high": total(out.clipped_high),
                "kl_to_behaviour": divergence(micro.behaviour_logprobs),
                "kl": divergence(reference) if reference is not None else 0.0,
                "loss": loss.item(),
                "row_tokens": micro.token_ids.numel(),
                "staleness": total(micro.staleness),
            }
        )

    def _gap(self, logprobs: torch.Tensor, micro: MicroBatch) -> None:
        """|trainer - vLLM| of tokens that were sampled under the very weights that they are now computed with."""
        fresh = micro.staleness == 0
        if fresh.any():
            gap = (logprobs - micro.behaviour_logprobs)[fresh].abs()
            self._enlarge("logprob_gap", gap)
            self._sums.update({"fresh": len(gap), "gap": gap.sum().item()})
            powers = gap.float().cpu().log10().nan_to_num(nan=GAP_RANGE[1]).clamp(*GAP_RANGE)
            self._gaps += torch.histc(powers, GAP_BINS, *GAP_RANGE).double()

    def check(self, step: int, temperature: float) -> None:
        """Collective, before the step is taken. `temperature`: of the distribution that was sampled.

        Raises EngineError, on every rank, where a number that it is made of is none, or trainer and vLLM don't agree.
        """
        self._total = dict(zip(SUMS, self.engine.sum([self._sums[name] for name in SUMS]), strict=True))
        self._most = dict(zip(LARGEST, self.engine.max(self._largest.tolist()), strict=True))
        finite.demand(f"step {step}", self._total | self._most)
        if self._total["fresh"]:
            finite.demand_gap(f"step {step}", self._most["logprob_gap"], self._bound(temperature))

    def _bound(self, temperature: float) -> float:
        return self._max_gap or finite.gap_bound(self._dtypes, self.engine.device.type == "cpu", temperature)

    def write(
        self,
        step: int,
        waited: Waited,
        judged: Judged,
        trained: int,
        gradient_norm: float | None,
        learning_rate: float,
        publisher: Publisher,
    ) -> None:
        """Collective. `trained`: tokens in the rows, which must be what the micro-batches held; where none, no norm."""
        gaps = torch.tensor(self.engine.sum(self._gaps.tolist()))
        tokens = self._total["tokens"]
        assert tokens == trained, f"{tokens} tokens in the batches of {trained} in the rows"
        if self.engine.rank == 0:
            values = {"learning_rate": learning_rate} | ({} if gradient_norm is None else {"grad_norm": gradient_norm})
            values |= self._of_tokens() | self._of_gaps(gaps) | of_episodes(waited, judged)
            values |= self._of_time(waited, publisher)
            values |= {"tokens_trained": trained, "version": publisher.version, "failed_updates": publisher.failed}
            values |= publisher.proof()
            self.metrics.log(step, values)
            self.metrics.log_trajectories(step, waited.trajectories)
            answer = {"groups": books(waited.trajectories, judged), "version": publisher.version}
            write_json(self.run / "rollouts" / f"step_{step:05d}.trained.json", answer)
            broken = waited.stats.get("infrastructure")
            print(f"step {step}: {line(values)}" + (f"  {infrastructure.line(broken)}" if broken else ""), flush=True)
            self._evaluations.take_in()
        self._reset()
        self._began = time.monotonic()

    def _of_tokens(self) -> dict[str, float]:
        total, tokens = self._total, self._total["tokens"]
        out = {"row_tokens": total["row_tokens"]}
        if tokens:
            means = {
                "entropy": "entropy",
                "kl_to_behaviour": "kl_to_behaviour",
                "ratio_mean": "ratio",
                "staleness_mean": "staleness",
                "clip_ratio/low_mean": "clipped_low",
                "clip_ratio/high_mean": "clipped_high",
            }
            means |= {"kl": "kl"} if self._has_reference else {}
            out |= {"loss": total["loss"]} | {name: self._most[name] for name in ("ratio_max", "staleness_max")}
            out |= {name: total[key] / tokens for name, key in means.items()}
        return out

    def _of_gaps(self, histogram: torch.Tensor) -> dict[str, float]:
        fresh = self._total["fresh"]
        if not fresh:
            return {"logprob_gap_tokens": fresh}
        largest = self._most["logprob_gap"]
        return {
            "logprob_gap_tokens": fresh,
            "logprob_gap": largest,
            "logprob_gap_mean": self._total["gap"] / fresh,
            "logprob_gap_p99": quantile(0.99, histogram, largest),
        }

    def _of_time(self, waited: Waited, publisher: Publisher) -> dict[str, float]:
        step_s = time.monotonic() - self._began
        train_s, rollout_s = step_s - waited.seconds - publisher.seconds, waited.stats["seconds"]
        out = {
            "step_s": step_s,
            "wait_for_rollouts_s": waited.seconds,
            "train_s": train_s,
            "update_s": publisher.seconds,
            "rollout_s": rollout_s,
        }
        out |= {"sampled_tokens_per_s": waited.stats["tokens"] / rollout_s} if rollout_s > 0 else {}
        trained = self._total["tokens"] and train_s > 0
        return out | ({"trained_tokens_per_s": self._total["row_tokens"] / train_s} if trained else {})

    def check_final_weights(self, waited: Waited, temperature: float, micro_batch_tokens: int) -> None:
        """The last update has no training step after it: its gap is measured on the held-out episodes.

        Raises as `check`. `temperature`: of the distribution whose logprobs vLLM reported.
        """
        rows = [row for t in waited.trajectories for row in batch.samples(t, [0.0] * len(t.calls))]
        with torch.no_grad():
            for micro in batch.micro_batches(
                rows,
                [0.0] * len(rows),
                micro_batch_tokens,
                self.engine.row_rank,
                self.engine.row_ranks,
                hidden_size=self.engine.hidden_size,
            ):
                micro = micro.to(self.engine.device)
                logprobs = self.engine.logprobs(micro, temperature)[0]
                if self.engine.leads_row:
                    self._gap(logprobs, micro)
        (tokens,), (gap, *_) = self.engine.sum([self._sums["fresh"]]), self.engine.max(self._largest.tolist())
        if tokens:
            finite.demand_gap("after the last step", gap, self._bound(temperature))
        if self.engine.rank == 0:
            write_json(self.run / "final_gap.json", {"tokens": int(tokens)} | ({"logprob_gap": gap} if tokens else {}))

    def close(self) -> None:
        if self.metrics:
            self._evaluations.take_in()
            self.metrics.close()


def quantile(share: float, histogram: torch.Tensor, largest: float) -> float:
    """Upper edge of the bin that holds it: at most 1.2% too large, and never above `largest`, which the last bin stands
    for."""
    place = int(torch.searchsorted(histogram.cumsum(0), share * histogram.sum()))
    low, high = GAP_RANGE
    edge = 10 ** (low + (place + 1) * (high - low) / GAP_BINS)
    return largest if place >= GAP_BINS - 1 else min(edge, largest)


def of_episodes(waited: Waited, judged: Judged) -> dict[str, float]:
    """Those that a broken machine ended are counted, and in no mean."""
    stats, finished = waited.stats, [t for t in waited.trajectories if t.outcome != Outcome.INFRASTRUCTURE_ERROR]
    out = {
        "tokens_sampled": stats["tokens"],
        "zero_variance_groups": judged.zero_variance_groups,
        "infrastructure_errors": stats["infrastructure_errors"],
        "engine_restarts": stats["engine_restarts"],
    }
    names = ("reward", "pass_rate", "refills", "refills_exhausted", "loop_standstill_s")
    out |= {name: stats[name] for name in names if name in stats}
    out |= {"calls_per_episode": stats["calls"]} if "calls" in stats else {}
    out |= {"frac_reward_zero_std": judged.zero_variance_groups / judged.groups} if judged.groups else {}
    out |= {f"rewards/{part}/mean": value for part, value in stats["parts"].items()}
    out |= {f"outcome/{name}": n for name, n in stats["outcomes"].items()}
    for part, numbers in stats.get("sets", {}).items():
        out |= {f"sets/{part}/{name}": value for name, value in numbers.items()}
    for part, numbers in stats.get("scaffolds", {}).items():
        out |= {f"scaffolds/{part}/{name}": value for name, value in numbers.items()}
    return out | (_lengths(finished) if finished else {})


def _lengths(finished: list[Trajectory]) -> dict[str, float]:
    lengths = [t.sampled_tokens for t in finished]
    return {
        "reward_std": pstdev(t.reward for t in finished),
        "completions/mean_length": fmean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": sum(t.outcome in TRUNCATED for t in finished) / len(finished),
    }


def line(values: dict[str, float]) -> str:
    """What the console says of a step."""
    shown = lambda name, form: format(values[name], form) if name in values else NOTHING
    return (
        f"pass rate {shown('pass_rate', '.3f')}  reward {shown('reward', '.3f')}  "
        f"entropy {shown('entropy', '.3f')}  gap {shown('logprob_gap', '.1e')}  waited "
        f"{shown('wait_for_rollouts_s', '.1f')} s  "
        f"train {shown('train_s', '.1f')} s  update {shown('update_s', '.2f')} s"
    )
