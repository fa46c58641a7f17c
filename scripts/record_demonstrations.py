"""Demonstrations under any scaffold: a scripted expert is the model, everything else is real: gateway, sandboxes, the
agent itself.

    python scripts/record_demonstrations.py configs/demonstrations/aider.yaml [a.b=c ...]

Writes OUTPUT/step_00000.parquet ..., trajectories like those of a run, token by token in `model`'s tokens, which
scripts/train_sft.py reads
(source kind `trajectories`); and OUTPUT/summary.json. An episode in which the agent asked for more or for less than the
expert had to say, or that
was not submitted, is left out and counted. The same command goes on after the last whole file; other inputs
(inputs.json)
need another `output:`.

Experts: `functions`, the imperfect one of coderepairrl/demonstrations/expert.py, and `oracle`, the known repair of any
task, hunk by hunk.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from tqdm import tqdm

from coderepairrl.config import contents, dump, load
from coderepairrl.demonstrations.acts import oracle_acts
from coderepairrl.demonstrations.dialects import AssistantMessage, speak
from coderepairrl.demonstrations.expert import DemonstrationsConfig, demonstration_acts
from coderepairrl.demonstrations.record_config import FunctionsExpert, OracleExpert, RecordConfig
from coderepairrl.demonstrations.scripted_server import NOT_LEARNT, Line, ScriptedClient
from coderepairrl.errors import ConfigError, TaskError
from coderepairrl.files import write_json
from coderepairrl.gateway import Gateway, Renderer, SamplingConfig, renderer_of
from coderepairrl.rewards import Grader
from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.run import inputs
from coderepairrl.run.program import program
from coderepairrl.sandboxes import check
from coderepairrl.scaffolds import make_scaffold, ready, refusal
from coderepairrl.tasks import load_tasks
from coderepairrl.tasks.building import build_all
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Outcome, Task, Trajectory


async def demonstrations(config: RecordConfig) -> Iterator[tuple[str, Task, list[AssistantMessage]]]:
    """(trajectory id, task, what the model says), the same in every run."""
    match config.expert:
        case FunctionsExpert(settings=settings):
            return _functions(config, settings)
        case OracleExpert(repeat=repeat):
            refuses = await refusal(make_scaffold(config.rollout.scaffold), config.rollout.environments)
            tasks = load_tasks(config.rollout.tasks)["train"]
            built, failures = await build_all(tasks, config.rollout.environments, refuses=refuses)
            if failures:
                print(
                    f"{len(failures)} tasks are left out, the first: {next(iter(failures.values()))}", file=sys.stderr
                )
            return _oracles(config, built, repeat)


def _functions(
    config: RecordConfig, settings: DemonstrationsConfig
) -> Iterator[tuple[str, Task, list[AssistantMessage]]]:
    """The puzzles and acts of `generate("demonstration", ...)`, one for one."""
    part = 500
    for number in range(settings.episodes):
        if number % part == 0:
            seed = f"{settings.seed}-demonstration-{number // part}"
            rng, stream = random.Random(seed), puzzles("train", seed)
        puzzle = next(stream)
        yield (
            f"demonstration-{number:06d}",
            puzzle.task,
            speak(config.rollout.scaffold, demonstration_acts(puzzle, rng, settings)),
        )


def _oracles(
    config: RecordConfig, tasks: list[Task], repeat: int
) -> Iterator[tuple[str, Task, list[AssistantMessage]]]:
    for round_ in range(repeat):
        for task in tasks:
            try:
                acts = oracle_acts(task)
            except TaskError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            yield f"{task.task_id}-{round_}", task, speak(config.rollout.scaffold, acts)


class Recorder:
    def __init__(self, config: RecordConfig, services: Services, client: ScriptedClient, renderer: Renderer):
        self.config, self.services, self.client, self.renderer = config, services, client, renderer
        self.left_out: Counter[str] = Counter()
        self.slots = asyncio.Semaphore(config.rollout.concurrent_episodes)

    async def episode(self, name: str, task: Task, turns: list[AssistantMessage], bar: tqdm) -> Trajectory | None:
        async with self.slots:
            self.client.prepare(
                name,
                [Line(self.renderer.turn(turn.message, None), 0 if turn.trained else NOT_LEARNT) for turn in turns],
            )
            trajectory = await run_episode(
                self.services,
                task,
                trajectory_id=name,
                group_id=name,
                split="train",
                attempt=0,
                sampling=SamplingConfig(),
                cache_salt=name,
            )
        left = self.client.left(name)
        bar.update()
        if trajectory.outcome != Outcome.SUBMITTED or left:
            self.left_out[
                f"{trajectory.outcome}: {trajectory.outcome_detail}"
                if trajectory.outcome != Outcome.SUBMITTED
                else "the agent ended before the expert"
            ] += 1
            return None
        return trajectory

    async def file(self, path: Path, part: list[tuple[str, Task, list[AssistantMessage]]], bar: tqdm) -> None:
        done = await asyncio.gather(*(self.episode(*one, bar) for one in part))
        kept = [trajectory for trajectory in done if trajectory is not None]
        if kept:  # a file without any would pass for done when the cause is mended
            trajectory_files.write(path, kept, {"left_out": dict(self.left_out)})


async def record(config: RecordConfig, output: Path) -> dict:
    """The summary."""
    rollout = config.rollout
    await asyncio.to_thread(check, rollout.sandbox)
    began, scaffold, client = time.monotonic(), make_scaffold(rollout.scaffold), ScriptedClient()
    renderer = renderer_of(
        config.model, rollout.rendering, rollout.chat_template, getattr(scaffold, "without_tools", "")
    )
    wanted = list(await demonstrations(config))
    async with ready(scaffold, rollout.environments) as socket, aiohttp.ClientSession() as http:
        gateway = Gateway(rollout.gateway, [client], renderer, socket)
        await gateway.start()
        services = Services(
            gateway, scaffold, rollout.sandbox, Grader(rollout.sandbox), rollout.rewards, rollout.limits, http
        )
        recorder = Recorder(config, services, client, renderer)
        try:
            with tqdm(
                total=len(wanted), desc=f"demonstrations under {rollout.scaffold.name}", unit="episode", mininterval=1
            ) as bar:
                for start in range(0, len(wanted), config.file_episodes):
                    path, part = (
                        output / f"step_{start // config.file_episodes:05d}.parquet",
                        wanted[start : start + config.file_episodes],
                    )
                    if path.exists():
                        # of all up to this file
                        recorder.left_out = Counter(trajectory_files.read(path)[1]["left_out"])
                        bar.update(len(part))
                    else:
                        await recorder.file(path, part, bar)
        finally:
            await gateway.stop()
    return summary_of(output) | {"left_out": dict(recorder.left_out), "seconds": round(time.monotonic() - began, 1)}


def inputs_of(config: RecordConfig) -> dict:
    """Of the model its tokenizer counts, of the tasks those that the expert repairs; puzzles come from its settings."""
    tasks = {"train": load_tasks(config.rollout.tasks)["train"]} if isinstance(config.expert, OracleExpert) else {}
    key = "model.tokenizer_and_config"
    tokenizer = contents.model(contents.there(config.model))[key]
    return inputs.of(config, inputs.RECORDING, tasks=tasks, known={key: tokenizer})


def summary_of(output: Path) -> dict:
    prompts, sampled, calls, roots, episodes, resolved = [], 0, 0, 0, 0, 0
    for path in sorted(output.glob("step_*.parquet")):
        for trajectory in trajectory_files.read(path)[0]:
            episodes += 1
            calls += len(trajectory.calls)
            roots += sum(call.parent is None for call in trajectory.calls)
            prompts += [len(call.prompt_ids) + len(call.completion_ids) for call in trajectory.calls]
            sampled += trajectory.sampled_tokens
            resolved += bool(trajectory.verdict and trajectory.verdict.resolved)
    return {
        "episodes": episodes,
        "calls": calls,
        "roots": roots,
        "said_tokens": sampled,
        "longest_context": max(prompts, default=0),
        "resolved": resolved,
    }


@program(RecordConfig)
def main(arguments: list[str]) -> None:
    config = load(RecordConfig, arguments[0], arguments[1:])
    output = Path(config.output)
    now = inputs_of(config)
    made = any(output.glob("*.parquet"))
    inputs.compare(
        output / inputs.RECORD, now, inputs.RECORDING, config=config, made=made, remedy="take another `output:`"
    )
    if (output / "summary.json").exists():
        print(f"{output}: already there")
        return
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / inputs.RECORD, now)
    dump(config, output / "config.yaml")
    summary = asyncio.run(record(config, output))
    if not summary["episodes"]:
        raise ConfigError(
            f"no demonstration could be recorded, because: {json.dumps(summary['left_out'])}: change limits, scaffold "
            "or expert"
        )
    write_json(output / "summary.json", summary)
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
