"""The numbers of a training step: sums over micro-batches and ranks; rank 0 writes metrics.jsonl. docs/metrics.md says what each means."""
import time
from collections import Counter
from pathlib import Path
from statistics import fmean, pstdev

import torch

from coderepairrl import algorithms, batch
from coderepairrl.algorithms import Surrogate
from coderepairrl.batch import MicroBatch
from coderepairrl.engine import Engine
from coderepairrl.evaluations import Evaluations
from coderepairrl.files import write_json
from coderepairrl.infrastructure import line
from coderepairrl.metrics import Metrics
from coderepairrl.publisher import Publisher
from coderepairrl.trainer import TRUNCATED, Judged, Waited, books
from coderepairrl.types import Outcome

SUMS = ("tokens", "ratio", "entropy", "clipped_low", "clipped_high", "kl", "kl_to_behaviour", "loss", "row_tokens", "staleness", "fresh", "gap")
GAP_BINS = 2000  # of the histogram from which quantiles of the gap are read
GAP_RANGE = (-8.0, 2.0)  # powers of ten


class StepLog:
    def __init__(self, engine: Engine, run: Path, config):
        self.engine, self.run = engine, run
        self.metrics = Metrics(run / "metrics.jsonl", config.wandb, config.model_dump(mode="json")) if engine.rank == 0 else None
        self._evaluations = Evaluations(run, self.metrics, config.training.evaluate_every, config.training.keep_checkpoints) if self.metrics else None
        self._has_reference = config.training.algorithm.kl_coefficient > 0
        self._began = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._max_gap, self._max_ratio, self._max_staleness = 0.0, 0.0, 0
        self._gaps = torch.zeros(GAP_BINS, dtype=torch.float64)

    def add(self, micro: MicroBatch, logprobs: torch.Tensor, reference: torch.Tensor | None, entropy: torch.Tensor, out: Surrogate, loss: torch.Tensor) -> None:
        """Of one micro-batch; tensors (N,). `reference`: logprobs under the reference policy."""
        if not self.engine.leads_row:
            return
        if not len(logprobs):
            self._sums["row_tokens"] += micro.token_ids.numel()
            return
        logprobs = logprobs.detach()
        self._gap(logprobs, micro)
        self._max_ratio = max(self._max_ratio, out.ratio.max().item())
        self._max_staleness = max(self._max_staleness, int(micro.staleness.max()))
        self._sums.update({
            "tokens": len(logprobs), "ratio": out.ratio.sum().item(), "entropy": entropy.sum().item(), "clipped_low": out.clipped_low.sum().item(),
            "clipped_high": out.clipped_high.sum().item(), "kl_to_behaviour": algorithms.low_variance_kl(logprobs, micro.behaviour_logprobs).sum().item(),
            "kl": algorithms.low_variance_kl(logprobs, reference).sum().item() if reference is not None else 0.0,
            "loss": loss.item(), "row_tokens": micro.token_ids.numel(), "staleness": micro.staleness.sum().item()})

    def _gap(self, logprobs: torch.Tensor, micro: MicroBatch) -> None:
        """|trainer - vLLM| of tokens that were sampled under the very weights that they are now computed with."""
        fresh = micro.staleness == 0
        if fresh.any():
            gap = (logprobs - micro.behaviour_logprobs)[fresh].abs()
            self._max_gap = max(self._max_gap, gap.max().item())
            self._sums.update({"fresh": len(gap), "gap": gap.sum().item()})
            self._gaps += torch.histc(gap.clamp(10 ** GAP_RANGE[0]).log10().float().cpu(), GAP_BINS, *GAP_RANGE).double()

    def _gap_quantile(self, share: float, histogram: torch.Tensor) -> float:
        """Upper edge of the bin that holds the quantile: at most 1.2% too large."""
        place = int(torch.searchsorted(histogram.cumsum(0), share * histogram.sum()))
        low, high = GAP_RANGE
        return 10 ** (low + (place + 1) * (high - low) / GAP_BINS)

    def write(self, step: int, waited: Waited, judged: Judged, trained: int, gradient_norm: float, learning_rate: float, publisher: Publisher) -> None:
        """Collective. `trained`: tokens in the rows, which must be what the micro-batches held."""
        total = dict(zip(SUMS, self.engine.sum([self._sums[name] for name in SUMS]), strict=True))
        max_gap, max_ratio, max_staleness = self.engine.max([self._max_gap, self._max_ratio, self._max_staleness])
        gaps = torch.tensor(self.engine.sum(self._gaps.tolist()))
        assert total["tokens"] == trained, f"{total['tokens']} tokens in the batches of {trained} in the rows"
        now, stats, per_token = time.monotonic(), waited.stats, max(1.0, total["tokens"])
        if self.engine.rank == 0:
            step_s, train_s = now - self._began, now - self._began - waited.seconds - publisher.seconds
            finished = [t for t in waited.trajectories if t.outcome != Outcome.INFRASTRUCTURE_ERROR]
            lengths = [sum(len(call.completion_ids) for call in t.calls) for t in finished] or [0]
            values = {
                "loss": total["loss"], "reward": stats["reward"], "reward_std": pstdev([t.reward for t in finished] or [0.0]), "pass_rate": stats["pass_rate"],
                "frac_reward_zero_std": judged.zero_variance_groups / max(1, judged.groups), "grad_norm": gradient_norm, "learning_rate": learning_rate,
                "entropy": total["entropy"] / per_token, "kl_to_behaviour": total["kl_to_behaviour"] / per_token, "ratio_mean": total["ratio"] / per_token,
                "ratio_max": max_ratio, "clip_ratio/low_mean": total["clipped_low"] / per_token, "clip_ratio/high_mean": total["clipped_high"] / per_token,
                "logprob_gap": max_gap, "logprob_gap_mean": total["gap"] / max(1.0, total["fresh"]), "logprob_gap_tokens": total["fresh"],
                "logprob_gap_p99": self._gap_quantile(0.99, gaps) if total["fresh"] else 0.0,
                "staleness_mean": total["staleness"] / per_token, "staleness_max": max_staleness,
                "tokens_sampled": stats["tokens"], "tokens_trained": trained, "row_tokens": total["row_tokens"],
                "zero_variance_groups": judged.zero_variance_groups,
                "completions/mean_length": fmean(lengths), "completions/min_length": min(lengths), "completions/max_length": max(lengths),
                "completions/clipped_ratio": sum(t.outcome in TRUNCATED for t in finished) / max(1, len(finished)), "calls_per_episode": stats["calls"],
                "version": publisher.version, "failed_updates": publisher.failed,
                "step_s": step_s, "wait_for_rollouts_s": waited.seconds, "train_s": train_s, "update_s": publisher.seconds, "rollout_s": stats["seconds"],
                "sampled_tokens_per_s": stats["tokens"] / stats["seconds"], "trained_tokens_per_s": total["row_tokens"] / max(train_s, 1e-9),
                "infrastructure_errors": stats["infrastructure_errors"], "engine_restarts": stats["engine_restarts"]}
            values |= {name: stats[name] for name in ("refills", "refills_exhausted") if name in stats}
            values |= {"kl": total["kl"] / per_token} if self._has_reference else {}
            values |= {f"rewards/{part}/mean": value for part, value in stats["parts"].items()}
            values |= {f"outcome/{name}": n for name, n in stats["outcomes"].items()}
            self.metrics.log(step, values)
            self.metrics.log_trajectories(step, waited.trajectories)
            write_json(self.run / "rollouts" / f"step_{step:05d}.trained.json", {"groups": books(waited.trajectories, judged), "version": publisher.version})
            print(f"step {step}: pass rate {stats['pass_rate']:.3f}  reward {stats['reward']:.3f}  entropy {values['entropy']:.3f}  gap {max_gap:.1e}  "
                  f"waited {waited.seconds:.1f} s  train {train_s:.1f} s  update {publisher.seconds:.2f} s" + (f"  {line(stats['infrastructure'])}" if stats.get("infrastructure") else ""), flush=True)
            self._evaluations.take_in()
        self._reset()
        self._began = time.monotonic()

    def check_final_weights(self, waited: Waited, temperature: float, micro_batch_tokens: int) -> None:
        """The last update has no training step after it: its gap is measured on the held-out episodes, without a gradient."""
        rows = [row for t in waited.trajectories for row in batch.samples(t, 0.0)]
        with torch.no_grad():
            for micro in batch.micro_batches(rows, [0.0] * len(rows), micro_batch_tokens, self.engine.row_rank, self.engine.row_ranks,
                                             hidden_size=self.engine.hidden_size):
                micro = micro.to(self.engine.device)
                self._gap(self.engine.logprobs(micro, temperature)[0], micro)
        gap, = self.engine.max([self._max_gap])
        if self.engine.rank == 0:
            write_json(self.run / "final_gap.json", {"logprob_gap": gap, "tokens": sum(sum(row.loss_mask) for row in rows)})

    def close(self) -> None:
        if self.metrics:
            self._evaluations.take_in()
            self.metrics.close()
