"""One task, one agent, everything shown: the tool for finding out what an agent does and why.

    python scripts/run_one.py CONFIG [a.b=c ...] [task=N] [split=train|heldout]
    python scripts/run_one.py configs/quickstart.yaml model=runs/quickstart/checkpoints/step_00060/policy task=3

CONFIG is one of scripts/train_grpo.py; vLLM serves its `model`. Shown of every call: the prompt's new tokens (grey:
what the
model reads), the sampled tokens, the redder the less likely, each with its probability where that is below one half,
and the
tool calls with their answers; at the end the diff, the verdict, the rewards, the outcome. Nothing is trained, and no
run
folder changes: logs are in RUN.run_one/.
"""

import asyncio
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from pydantic import model_validator
from rich.console import Console
from rich.rule import Rule
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text

from coderepairrl.config import load
from coderepairrl.errors import ConfigError
from coderepairrl.files import write_json
from coderepairrl.gateway.call_tree import kept
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.run.intervals import NOTHING
from coderepairrl.run.program import program
from coderepairrl.run.train_config import TrainConfig
from coderepairrl.types import TEST_OUTPUT, Call, Task, Trajectory, Verdict

# red, green, blue of a token of probability 1 and of one that was a surprise
SURE, UNSURE = (215, 215, 215), (235, 60, 40)
SURPRISE_NATS = 4.0  # from this much on a token has the full colour
READ, SAID, ANSWERED = Style(color="grey50"), Style(color="cyan", bold=True), Style(color="yellow")


class RunOneConfig(TrainConfig):
    @model_validator(mode="after")
    def _agent_decides(self) -> "RunOneConfig":
        return self  # nothing is trained, so any control may be looked at


def visible(text: str) -> str:
    """Control characters spelled out: what a model samples must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def pieces(tokenizer, token_ids: Sequence[int], logprobs: Sequence[float]) -> list[tuple[str, float]]:
    """(text, logprob) token by token. Tokens that only together make a character are one piece, with the sum of their
    logprobs."""
    out, held, total = [], [], 0.0
    for place, (token, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
        held.append(token)
        total += logprob
        text = tokenizer.decode(held)
        # UTF-8 needs four bytes at most
        if not text.endswith("\ufffd") or len(held) >= 4 or place == len(token_ids) - 1:
            out.append((text, total))
            held, total = [], 0.0
    return out


def colour(logprob: float) -> Style:
    share = min(-logprob / SURPRISE_NATS, 1.0)
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(SURE, UNSURE, strict=True))
    return Style(color=f"rgb({red},{green},{blue})", bold=share > 0.5)


def sampled(tokenizer, call: Call) -> Text:
    out = Text()
    for text, logprob in pieces(tokenizer, call.completion_ids, call.logprobs):
        out.append(visible(text), colour(logprob))
        if logprob < math.log(0.5):
            out.append(f"⟨{math.exp(logprob):.2f}⟩", Style(dim=True, italic=True))
    return out


def new_tokens(calls: Sequence[Call], call: Call) -> tuple[int, ...]:
    """What of the prompt no earlier call has shown: all of it for a root."""
    if call.parent is None:
        return call.prompt_ids
    return call.prompt_ids[len(kept(calls[call.parent], call.parent_part)) :]


def show_call(console: Console, tokenizer, trajectory: Trajectory, event: dict) -> None:
    """One call, its event of the gateway beside it: answers of the tools that came with the prompt, then what was
    sampled."""
    call = trajectory.calls[event["index"]]
    fresh = new_tokens(trajectory.calls, call)
    above = "root" if call.parent is None else f"after the {call.parent_part} of call {call.parent}"
    why = f" ({event['why_root']})" if call.rerendered else ""
    console.print(
        Rule(
            f"call {call.index}: {above}{why}, {len(call.prompt_ids)} prompt tokens, {len(fresh)} new, "
            f"{len(call.completion_ids)} sampled, "
            f"{call.finish_reason}, version {'/'.join(map(str, sorted(set(call.policy_versions))))}, "
            f"{call.seconds:.2f} "
            "s",
            align="left",
        )
    )
    for message in event["new_messages"]:
        if message["role"] == "tool":
            console.print(Text("answer  " + visible(str(message["content"])), ANSWERED))
    console.print(Text(visible(tokenizer.decode(fresh)), READ))
    console.print(sampled(tokenizer, call))
    console.print(Text(f"mean logprob {f'{fmean(call.logprobs):.3f}' if call.logprobs else NOTHING}", Style(dim=True)))
    for made in event["message"].get("tool_calls", ()):
        console.print(
            Text(f"call    {visible(made['function']['name'])} {visible(made['function']['arguments'])}", SAID)
        )


def show_end(console: Console, trajectory: Trajectory) -> None:
    console.print(Rule("diff", align="left"))
    console.print(
        Syntax(visible(trajectory.diff).rstrip("\n"), "diff", background_color="default")
        if trajectory.diff
        else Text("no change", READ)
    )
    console.print(Rule("verdict", align="left"))
    show_verdict(console, trajectory.verdict)
    show_test_output(console, *trajectory.test_output)
    console.print(Rule("end", align="left"))
    console.print(
        f"outcome   {trajectory.outcome}" + (f": {trajectory.outcome_detail}" if trajectory.outcome_detail else ""),
        markup=False,
    )
    console.print(f"reward    {trajectory.reward:g}  = {trajectory.rewards}", markup=False)
    console.print(
        f"calls     {len(trajectory.calls)}, {trajectory.sampled_tokens} sampled tokens, {trajectory.seconds:.1f} s",
        markup=False,
    )
    console.print(f"stats     {trajectory.stats}", markup=False)


def show_verdict(console: Console, verdict: Verdict | None) -> None:
    if verdict is None:
        console.print(Text("no test was run", READ))
        return
    console.print(
        Text("resolved" if verdict.resolved else "not resolved", "bold green" if verdict.resolved else "bold red"),
        Text(f"evidence {verdict.evidence}, {verdict.seconds:.1f} s {visible(verdict.message)}", READ),
    )
    for kind, statuses in (("must pass now", verdict.fail_to_pass), ("must still pass", verdict.pass_to_pass)):
        bad = {test: status for test, status in statuses.items() if status != "passed"}
        console.print(
            f"{kind}: {len(statuses) - len(bad)} of {len(statuses)}"
            + "".join(f"\n    {status:8} {visible(test)}" for test, status in bad.items()),
            markup=False,
        )
    for line in verdict.dropped_paths:
        console.print(f"not applied: {visible(line)}", markup=False)


def show_test_output(console: Console, tail: str, file: str) -> None:
    if tail:
        console.print(Rule("what the tests printed last", align="left"))
        console.print(Text(visible(tail), READ))
    if file:
        console.print(f"all of it: {file}", markup=False)


def show(console: Console, tokenizer, task: Task, trajectory: Trajectory) -> None:
    console.print(Rule(f"{task.task_id}: the oracle's patch", align="left"))
    console.print(Syntax(visible(task.oracle_patch).rstrip("\n"), "diff", background_color="default"))
    for event in trajectory.events:
        if event["kind"] == "call":
            show_call(console, tokenizer, trajectory, event)
        elif event["kind"] != TEST_OUTPUT:  # which comes with the verdict
            console.print(
                Text(
                    f"{event['at_s']:.2f} s  " + " ".join(f"{k}={v}" for k, v in event.items() if k != "at_s"),
                    Style(dim=True),
                )
            )
    show_end(console, trajectory)


def pick(tasks: dict[str, list[Task]], split: str, number: str) -> Task:
    if split not in tasks:
        raise ConfigError(f"split={split}: no such split: one of {', '.join(tasks)}")
    if not number.isdigit() or int(number) >= len(tasks[split]):
        raise ConfigError(f"task={number}: no such task: 0 to {len(tasks[split]) - 1} of split {split}")
    return tasks[split][int(number)]


async def run_one(config: RunOneConfig, split: str, number: str, console: Console) -> None:
    """SIGINT and SIGTERM end the episode, the sandbox and vLLM before the program."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    folder = Path(config.run).with_name(Path(config.run).name + ".run_one")
    for name in ("logs/attempt_1", "policy"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(folder / "policy" / "current.json", {"version": 0, "step": 0, "path": config.model, "live": True})
    rollouts = Rollout(config.rollout, folder, config.model, attempt=1)
    task = pick(rollouts.tasks, split, number)  # before vLLM is started
    with console.status(f"vLLM starts with {config.model}") as status:
        async with rollouts:
            status.update(f"the agent works on {task.task_id}")
            trajectory = await rollouts.episode(task, split)
    from coderepairrl.models.tokenizer import (
        load_tokenizer,  # imports transformers: not before a mistake in the arguments was found
    )

    show(console, load_tokenizer(config.model), task, trajectory)


@program(RunOneConfig)
def main(arguments: list[str]) -> None:
    chosen = {"task": "0", "split": "heldout"}
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key in chosen:
            chosen[key] = value
    config = load(RunOneConfig, arguments[0], [a for a in arguments[1:] if a.partition("=")[0] not in chosen])
    if not (Path(config.model) / "config.json").exists():
        raise ConfigError(
            f"{config.model}: no model there (no config.json): make it first (scripts/quickstart.sh), or name another "
            "with model=..."
        )
    try:
        asyncio.run(run_one(config, chosen["split"], chosen["task"], Console(highlight=False, soft_wrap=True)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
