"""GRPO with a coding agent in the loop: the main program, and the whole loop.

    python scripts/train_grpo.py configs/quickstart.yaml [a.b=c ...]

On one machine (role: all) it starts two programs and watches over them, in the run folder's own words:
    role=rollout   vLLM, gateway, agents in sandboxes, grading       -> rollouts/step_*.parquet
    role=train     DeepSpeed ZeRO-3 ranks: advantages, loss, step    -> new weights, live in vLLM
The same command again goes on from the newest checkpoint, or says that the run is done.

Left out on purpose: asynchronous rollouts, other losses, packed rows.
"""
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from coderepairrl.config import Config, load
from coderepairrl.engine_config import EngineConfig
from coderepairrl.metrics import WandbConfig
from coderepairrl.policy import read_json
from coderepairrl.program import program
from coderepairrl.rollout import Rollout, RolloutConfig


class TrainingConfig(Config):
    steps: int
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Literal["token", "trajectory"] = "token"  # what weighs the same in the loss
    scale_advantages: bool = True  # divide by the group's standard deviation
    micro_batch_tokens: int = 8192  # padded, of one rank
    checkpoint_every: int = 10
    evaluate: bool = True  # the held-out tasks, before the first and after the last step
    ranks: int = 1
    threads: int = 1  # of each rank, on CPU


class TrainConfig(Config):
    run: str  # the run folder
    model: str  # the warm-started policy, a Hugging Face folder
    role: Literal["all", "rollout", "train"] = "all"
    engine: EngineConfig
    rollout: RolloutConfig
    training: TrainingConfig
    wandb: WandbConfig | None = None


def start_of(run: Path, model: str) -> tuple[int, int, str]:
    """(first step to do, version of the weights to start from, their folder): from the newest checkpoint, or from the beginning."""
    checkpoints = sorted(path for path in (run / "checkpoints").glob("step_*") if path.suffix != ".tmp")
    if not checkpoints:
        return 0, 0, model
    state = read_json(checkpoints[-1] / "state.json")
    return state["step"], state["version"], str(checkpoints[-1] / "policy")


async def rollout(config: TrainConfig, run: Path, attempt: int) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)  # so that vLLM is ended, too
    first, version, model = start_of(run, config.model)
    async with Rollout(config.rollout, run, model, version, attempt) as rollouts:
        if config.training.evaluate and not (run / "rollouts" / "eval_before.parquet").exists():
            await rollouts.evaluate("before")
        for step in range(first, config.training.steps):
            await rollouts.collect(step)  # on-policy: the weights do not change until the step is trained
            await rollouts.await_update(step)
        if config.training.evaluate:
            await rollouts.evaluate("after")


def train(config: TrainConfig, run: Path) -> None:
    import torch

    from coderepairrl import algorithms, batch
    from coderepairrl.engine import Engine
    from coderepairrl.trainer import Publisher, StepLog, advantages, wait_for_rollouts

    torch.set_num_threads(config.training.threads)
    first, version, _ = start_of(run, config.model)
    engine = Engine(config.model, config.engine)
    if first:
        engine.load(run / "checkpoints" / f"step_{first:05d}")
    publisher = Publisher(engine, run, config.rollout.server, version)
    log = StepLog(engine, run, config)
    for step in range(first, config.training.steps):
        trajectories, stats = wait_for_rollouts(run, f"step_{step:05d}", log)
        rewards = advantages(trajectories, config.training.scale_advantages)  # trajectory id -> advantage, None: masked
        rows = [s for t in trajectories if rewards.trained(t) for s in batch.samples(t, rewards.advantage[t.trajectory_id])]
        tokens = batch.trained_tokens(rows)  # trajectory id -> tokens
        weights = algorithms.token_weights(config.training.aggregation, tokens)
        assert all(publisher.version == v for row in rows for v in row.policy_versions if v >= 0), "a token of another version: not on-policy"
        micro_batches = batch.micro_batches(rows, config.training.micro_batch_tokens, engine.rank, engine.world_size)
        for i, micro in enumerate(micro_batches):
            micro = micro.to(engine.device)
            logits = engine.logits(micro.token_ids) / config.rollout.sampling.temperature
            logprobs, entropy = algorithms.token_logprobs(logits, micro.token_ids)  # (B, T)
            losses, ratio = algorithms.clipped_policy_loss(logprobs, micro.behaviour_logprobs, micro.advantages, config.training.clip_low, config.training.clip_high)
            row_weights = torch.tensor([weights.get(t, 0.0) for t in micro.trajectory_ids], device=engine.device)[:, None]  # (B, 1)
            loss = (losses * micro.loss_mask * row_weights).sum()
            engine.backward(loss, last=i == len(micro_batches) - 1)
            log.add(micro, logprobs.detach(), ratio.detach(), entropy, loss.item())
        gradient_norm, learning_rate = engine.step() if micro_batches else (0.0, engine.learning_rate())
        publisher.publish()  # export, then live into vLLM
        if (step + 1) % config.training.checkpoint_every == 0 or step + 1 == config.training.steps:
            publisher.checkpoint(step + 1)
        log.write(step, trajectories, rewards, stats, sum(tokens.values()), gradient_norm, learning_rate, publisher)
    if config.training.evaluate:
        log.check_final_weights(wait_for_rollouts(run, "eval_after", log)[0], config.rollout.evaluation.temperature, config.training.micro_batch_tokens)
    log.close()
    engine.close()


@program
def main(arguments: list[str]) -> None:
    config = load(TrainConfig, arguments[0], arguments[1:])
    run = Path(config.run)
    if config.role == "train":
        train(config, run)
    elif config.role == "rollout":
        asyncio.run(rollout(config, run, int(os.environ["CODEREPAIRRL_ATTEMPT"])))
    else:
        from coderepairrl.driver import drive
        drive(config, run, arguments)

if __name__ == "__main__":
    main(sys.argv[1:])
