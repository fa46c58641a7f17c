"""Shared by several tests: test_scaffold_agents.py and others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaffold_helpers import tool_text

from coderepairrl.config import load
from coderepairrl.scaffolds.codex import CodexConfig
from coderepairrl.scaffolds.mini_swe_agent import MiniSweAgentConfig
from coderepairrl.tasks.functions import puzzles

ROOT = Path(__file__).resolve().parents[1]


PUZZLE = next(puzzles("train", "scaffolds")).task


@dataclass(frozen=True)
class Agent:
    config: Callable
    shell: Callable[[str], str]  # how its model runs a command
    end: str  # how it says that it is done


def example():
    """The configuration that is shipped with the worked example, as the program reads it."""
    from coderepairrl.run.train_config import TrainConfig

    return load(TrainConfig, ROOT / "examples/command/quickstart.yaml").rollout.scaffold


SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


AGENTS = {
    "mini_swe_agent": Agent(
        MiniSweAgentConfig,
        lambda line: "Let me see.\n" + tool_text("bash", command=line),
        tool_text("bash", command=SUBMIT),
    ),
    "mini_swe_agent_text": Agent(
        lambda: MiniSweAgentConfig(mode="text"),
        lambda line: f"THOUGHT: so.\n\n```mswea_bash_command\n{line}\n```",
        f"```mswea_bash_command\n{SUBMIT}\n```",
    ),
    "codex": Agent(CodexConfig, lambda line: tool_text("exec_command", cmd=line), "It is repaired."),
    "command": Agent(example, lambda line: tool_text("shell", command=line), "done"),
}
