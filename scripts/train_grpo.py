"""GRPO with a coding agent in the loop: the main program, and the whole loop.

    python scripts/train_grpo.py configs/quickstart.yaml [a.b=c ...]

On one machine (role: all) it starts two programs and watches over them, in the run folder's own words:
    role=rollout   vLLM, gateway, agents in sandboxes, grading       -> rollouts/step_*.parquet
    role=serve     a further vLLM, in jobs where several nodes serve
    role=train     DeepSpeed ZeRO-3 ranks: advantages, loss, step    -> new weights, live in vLLM
The same command again goes on from the newest checkpoint, or says that the run is done; with more training.steps a
finished
run goes on. Other settings than those that made the folder (inputs.json) are refused, unless they change no number or
resume.allow names them.

Both run at the same time: rollout.max_staleness says how many optimizer steps older than the trainer a trained token
may be.
Left out on purpose: several optimizer steps on the same rollouts (PPO epochs).
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from coderepairrl.config import load
from coderepairrl.inference import supervisor
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.run.attempt import Place
from coderepairrl.run.driver import drive, start_of
from coderepairrl.run.program import program
from coderepairrl.run.train_config import TrainConfig
from coderepairrl.training.checkpoints import folder_of


async def rollout(config: TrainConfig, run: Path, attempt: int) -> None:
    # so that vLLM is ended, too
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    training = config.training
    rollouts = Rollout(config.rollout, run, config.model, attempt, trains=True)
    if not (training.evaluate or training.evaluate_every):
        rollouts.tasks["heldout"] = []  # whose environments needn't be built, nor work
    async with rollouts:
        if training.evaluate:
            await rollouts.evaluate("before", updates=0)
        # groups run ahead of the trainer as far as max_staleness lets them
        await rollouts.produce(training.steps, training.evaluate_every)
        # what is evaluated can be come back to, whenever this is killed
        while not folder_of(run, training.steps).exists():
            await asyncio.sleep(supervisor.POLL_S)
        await rollouts.evaluate("after", updates=training.steps)


async def serve(config: ServerConfig, run: Path, attempt: int) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    number = Place.here().node
    await supervisor.serve(config, run, run / "logs" / f"attempt_{attempt}" / f"vllm_{number}.log", number)


def train(config: TrainConfig, run: Path) -> None:
    import torch

    from coderepairrl.rollout.evaluations import has_tasks
    from coderepairrl.training import algorithms, batch
    from coderepairrl.training.engine import Engine
    from coderepairrl.training.step_log import StepLog
    from coderepairrl.training.trainer import judge, steps_of_versions, wait_for_rollouts
    from coderepairrl.weights.probe import unproven_versions
    from coderepairrl.weights.publisher import Publisher

    training, algorithm, temperature = config.training, config.training.algorithm, config.rollout.sampling.temperature
    torch.set_num_threads(training.threads)
    first, version, _ = start_of(run, config.model)
    engine = Engine(
        config.model,
        config.engine,
        run / "checkpoints" / f"step_{first:05d}" if first else None,
        reference=algorithm.kl_coefficient > 0,
    )
    publisher = Publisher(engine, run, config.rollout.server, version, training.export_every)
    log = StepLog(engine, run, config)
    for step in range(first, training.steps):
        waited = wait_for_rollouts(run, f"step_{step:05d}", engine, publisher)
        if waited is None:  # a time limit or a preemption is near
            if step > first:
                publisher.checkpoint(step)
            break
        staleness_of = {v: step - contained for v, contained in steps_of_versions(run).items()}
        judged = judge(
            waited.trajectories,
            algorithm,
            staleness_of,
            config.rollout.max_staleness,
            config.rollout.limits.max_total_tokens,
            unproven_versions(run),
            config.rollout.rewards.discount_per_call,
        )
        rows = [
            s
            for t in waited.trajectories
            if judged.trained(t)
            for s in batch.samples(t, judged.advantage[t.trajectory_id])
        ]
        assert all(
            staleness_of[v] <= config.rollout.max_staleness for row in rows for v in set(row.policy_versions) - {-1}
        ), "a token too old to be trained"
        weights = algorithms.row_weights(
            algorithm.aggregation, rows, config.rollout.limits.max_total_tokens, len(waited.trajectories)
        )
        micro_batches = batch.micro_batches(
            rows,
            weights,
            training.micro_batch_tokens,
            engine.row_rank,
            engine.row_ranks,
            hidden_size=engine.hidden_size,
            staleness_of=staleness_of,
            share_prefixes=training.share_prefixes,
        )
        for i, micro in enumerate(micro_batches):
            micro = micro.to(engine.device)
            reference = engine.reference_logprobs(micro, temperature) if algorithm.kl_coefficient else None
            logprobs, entropy = engine.logprobs(micro, temperature)  # (N,)
            out = algorithms.policy_loss(
                algorithm, logprobs, micro.behaviour_logprobs, micro.advantages, micro.branches, reference
            )
            loss = (out.losses * micro.weights).sum()
            engine.backward(loss, last=i == len(micro_batches) - 1)
            log.add(micro, logprobs, reference, entropy, out, loss)
        log.check(step, temperature)  # what is no number, or another policy's, changes no weights
        gradient_norm, learning_rate = engine.step() if micro_batches else (None, engine.skip())
        publisher.publish()  # new weights, live into vLLM
        log.write(
            step, waited, judged, sum(batch.trained_tokens(rows).values()), gradient_norm, learning_rate, publisher
        )
        if training.keeps(step + 1):  # after the answers to the rollout process, which a resume from it counts on
            publisher.checkpoint(step + 1)
    evaluated = (training.evaluate or training.evaluate_every) and has_tasks(run)
    if evaluated and (waited := wait_for_rollouts(run, "eval_after", engine, publisher)):
        log.check_final_weights(waited, config.rollout.evaluation.scored_temperature, training.micro_batch_tokens)
    log.close()
    engine.close()


@program(TrainConfig)
def main(arguments: list[str]) -> None:
    config = load(TrainConfig, arguments[0], arguments[1:])
    run = Path(config.run)
    if config.role == "train":
        train(config, run)
    elif config.role == "rollout":
        asyncio.run(rollout(config, run, int(os.environ["CODEREPAIRRL_ATTEMPT"])))
    elif config.role == "serve":
        asyncio.run(serve(config.rollout.server, run, int(os.environ["CODEREPAIRRL_ATTEMPT"])))
    else:
        drive(config, run, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
