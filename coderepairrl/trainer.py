"""What the training loop of scripts/train_grpo.py needs beside the engine: waiting, advantages, publishing weights, the step's log."""
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from coderepairrl import algorithms, batch, store
from coderepairrl.engine import Engine
from coderepairrl.errors import EngineError
from coderepairrl.metrics import Metrics
from coderepairrl.policy import ServerConfig, read_json, write_json
from coderepairrl.types import Outcome, Trajectory
from coderepairrl.weight_transfer import WeightSender

KEPT_EXPORTS = 2


def wait_for_rollouts(run: Path, name: str, log: "StepLog") -> tuple[list[Trajectory], dict]:
    """Blocks until the rollout process has written the file. The driver ends this process when that one dies."""
    path, started = run / "rollouts" / f"{name}.parquet", time.monotonic()
    while not path.exists():
        time.sleep(0.02)
    log.waited_s = time.monotonic() - started
    return store.read(path)


@dataclass(frozen=True)
class Advantages:
    advantage: dict[str, float]  # trajectory id -> advantage
    masked: dict[str, str]  # trajectory id -> why its tokens are not trained
    zero_variance_groups: int

    def trained(self, trajectory: Trajectory) -> bool:
        return trajectory.trajectory_id not in self.masked


def advantages(trajectories: list[Trajectory], scale: bool) -> Advantages:
    """Group by group. Infrastructure errors are left out of their group's statistics; groups without variance teach nothing."""
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.group_id].append(trajectory)
    advantage, masked, flat = {}, {}, 0
    for members in groups.values():
        masked |= {t.trajectory_id: "infrastructure_error" for t in members if t.outcome == Outcome.INFRASTRUCTURE_ERROR}
        members = [t for t in members if t.trajectory_id not in masked]
        if not members:
            continue
        values = algorithms.grpo_advantages(torch.tensor([t.reward for t in members], dtype=torch.float64), scale)
        if not values.any():
            flat += 1
            masked |= {t.trajectory_id: "zero_variance" for t in members}
        advantage |= {t.trajectory_id: value for t, value in zip(members, values.tolist(), strict=True)}
    return Advantages(advantage, masked, flat)


class Publisher:
    """New weights: counted, exported, sent into the running vLLM; `current.json` says what the world should use."""

    def __init__(self, engine: Engine, run: Path, server: ServerConfig, version: int):
        self.engine, self.run, self.server, self.version = engine, run, server, version
        self.seconds, self.updates, self.failed = 0.0, 0, 0
        # versions that a killed attempt has used after the checkpoint are not given again: its tokens carry them
        self._highest = max(version, read_json(run / "policy" / "highest_version") or 0)

    def publish(self) -> None:
        """Collective. A failed send is not an error: vLLM is then restarted from the export by the rollout process."""
        started = time.monotonic()
        self._highest += 1
        self.version = self._highest
        weights = self.engine.weights()  # rank 0: all of them
        if self.engine.rank == 0:
            folder = self.run / "policy" / f"v{self.version:06d}"
            self.engine.export(weights, folder)
            write_json(self.run / "policy" / "highest_version", self.version)
            live = self._send(weights)
            self.updates += live
            self.failed += not live
            write_json(self.run / "policy" / "current.json", {"version": self.version, "path": str(folder), "live": live})
            for old in sorted((self.run / "policy").glob("v*"))[:-KEPT_EXPORTS]:
                shutil.rmtree(old)
        dist.barrier()
        self.seconds = time.monotonic() - started

    def _send(self, weights: dict[str, torch.Tensor]) -> bool:
        server = read_json(self.run / "policy" / "engine.json")
        if server is None:
            print("vLLM is being restarted: it will get this update from the export", flush=True)
            return False
        try:
            WeightSender(server["url"], self.server.update_timeout_s).send(weights.items(), self.version)
        except EngineError as error:
            print(f"weight update {self.version} failed: {error}", flush=True)
            return False
        return True

    def checkpoint(self, step: int) -> None:
        """Collective. Everything that a later attempt needs, under checkpoints/step_N; only the newest is kept."""
        folder = self.run / "checkpoints" / f"step_{step:05d}"
        self.engine.save(folder, {"step": step, "version": self.version}, self.run / "policy" / f"v{self.version:06d}")
        if self.engine.rank == 0:
            for old in sorted(self.run.glob("checkpoints/step_*"))[:-1]:
                shutil.rmtree(old)


class StepLog:
    """Sums over micro-batches and ranks; rank 0 writes metrics.jsonl and the answer to the rollout process."""

    def __init__(self, engine: Engine, run: Path, config):
        self.engine, self.run = engine, run
        self.metrics = Metrics(run / "metrics.jsonl", config.wandb, config.model_dump(mode="json")) if engine.rank == 0 else None
        self.clip = (config.training.clip_low, config.training.clip_high)
        self.waited_s, self._began = 0.0, time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._gap, self._max_ratio = 0.0, 0.0

    def add(self, micro: batch.MicroBatch, logprobs: torch.Tensor, ratio: torch.Tensor, entropy: torch.Tensor, loss: float) -> None:
        mask = micro.loss_mask
        difference = (logprobs - micro.behaviour_logprobs) * mask
        self._gap = max(self._gap, difference.abs().max().item())
        self._max_ratio = max(self._max_ratio, (ratio * mask).max().item())
        clipped = ((ratio < 1 - self.clip[0]) | (ratio > 1 + self.clip[1])) * mask
        kl = algorithms.low_variance_kl(logprobs, micro.behaviour_logprobs) * mask
        self._sums.update(tokens=mask.sum().item(), ratio=(ratio * mask).sum().item(), entropy=(entropy * mask).sum().item(), clipped=clipped.sum().item(),
                          kl=kl.sum().item(), loss=loss, padded=float(mask.numel()), row_tokens=float((micro.token_ids > 0).sum()))

    def write(self, step: int, trajectories: list[Trajectory], rewards: Advantages, stats: dict, tokens: int, gradient_norm: float, learning_rate: float,
              publisher: Publisher) -> None:
        names = ["tokens", "ratio", "entropy", "clipped", "kl", "loss", "padded", "row_tokens"]
        total = dict(zip(names, self.engine.sum([self._sums[name] for name in names]), strict=True))
        gap, max_ratio = self.engine.max([self._gap, self._max_ratio])
        assert total["tokens"] == tokens, f"{total['tokens']} tokens in the batches of {tokens} in the rows"
        per_token = max(1.0, total["tokens"])
        now = time.monotonic()
        if self.engine.rank == 0:
            step_s, train_s = now - self._began, now - self._began - self.waited_s - publisher.seconds
            values = {
                "loss": total["loss"], "reward": stats["reward"], "pass_rate": stats["pass_rate"], "gradient_norm": gradient_norm, "learning_rate": learning_rate,
                "entropy": total["entropy"] / per_token, "kl_to_behaviour": total["kl"] / per_token, "ratio_mean": total["ratio"] / per_token,
                "ratio_max": max_ratio, "clipped_share": total["clipped"] / per_token, "logprob_gap": gap,
                "tokens_sampled": stats["tokens"], "tokens_trained": tokens, "zero_variance_groups": rewards.zero_variance_groups,
                "calls_per_episode": stats["calls"], "version": publisher.version, "failed_updates": publisher.failed,
                "step_s": step_s, "wait_for_rollouts_s": self.waited_s, "train_s": train_s, "update_s": publisher.seconds, "rollout_s": stats["seconds"],
                "sampled_tokens_per_s": stats["tokens"] / stats["seconds"], "trained_tokens_per_s": total["row_tokens"] / max(train_s, 1e-9),
                "infrastructure_errors": stats["infrastructure_errors"], "engine_restarts": stats["engine_restarts"]}
            values |= {f"reward/{part}": value for part, value in stats["parts"].items()} | {f"outcome/{name}": n for name, n in stats["outcomes"].items()}
            self.metrics.log(step, values)
            write_json(self.run / "rollouts" / f"step_{step:05d}.trained.json", {"groups": _books(trajectories, rewards), "version": publisher.version})
            print(f"step {step}: pass rate {stats['pass_rate']:.3f}  reward {stats['reward']:.3f}  entropy {values['entropy']:.3f}  gap {gap:.1e}  "
                  f"rollout {stats['seconds']:.1f} s  train {train_s:.1f} s  update {publisher.seconds:.2f} s", flush=True)
        self._reset()
        self._began = time.monotonic()

    def check_final_weights(self, trajectories: list[Trajectory], temperature: float, micro_batch_tokens: int) -> None:
        """The last update has no training step after it: its gap is measured on the held-out episodes, without a gradient."""
        rows = [row for t in trajectories for row in batch.samples(t, 0.0)]
        with torch.no_grad():
            for micro in batch.micro_batches(rows, micro_batch_tokens, self.engine.rank, self.engine.world_size):
                micro = micro.to(self.engine.device)
                logprobs, _ = algorithms.token_logprobs(self.engine.logits(micro.token_ids) / temperature, micro.token_ids)
                self._gap = max(self._gap, ((logprobs - micro.behaviour_logprobs) * micro.loss_mask).abs().max().item())
        gap, = self.engine.max([self._gap])
        if self.engine.rank == 0:
            write_json(self.run / "final_gap.json", {"logprob_gap": gap, "tokens": sum(sum(row.loss_mask) for row in rows)})

    def close(self) -> None:
        if self.metrics:
            self.metrics.close()


def _books(trajectories: list[Trajectory], rewards: Advantages) -> dict[str, dict]:
    """Group -> how many of its sampled tokens were trained, and why the others were not."""
    books: dict[str, dict] = {}
    for trajectory in trajectories:
        book = books.setdefault(trajectory.group_id, {"trained": 0, "masked": {}})
        tokens = sum(len(call.completion_ids) for call in trajectory.calls)
        reason = rewards.masked.get(trajectory.trajectory_id)
        if reason is None:
            book["trained"] += tokens
        else:
            book["masked"][reason] = book["masked"].get(reason, 0) + tokens
    return books
