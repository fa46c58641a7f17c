"""mini-swe-agent 2.4.6: its own prompts, loop, tool and environment, with a model class that needs no litellm
(mini_swe_agent_driver.py).

Its history is append-only, but for malformed answers, which it drops. Each of its commands is a fresh shell in the
checkout.
"""

import json
from pathlib import Path
from typing import Any, Literal

from coderepairrl.config import Config
from coderepairrl.scaffolds.installation import Installation, lock
from coderepairrl.scaffolds.process_scaffold import AgentPlace, Command, ProcessScaffold
from coderepairrl.types import Task

CONFIGS = {"tools": "mini.yaml", "text": "mini_textbased.yaml"}
DRIVER = Path(__file__).with_name("inside") / "mini_swe_agent_driver.py"


class MiniSweAgentConfig(Config):
    """mini-swe-agent, unmodified."""

    name: Literal["mini_swe_agent"] = "mini_swe_agent"
    mode: Literal["tools", "text"] = "tools"  # a bash tool, as is its default, or one code block an answer
    # laid over its configuration: {agent: {system_template: ...}, environment: {timeout: 60}, model: {...}}
    settings: dict[str, Any] = {}


class MiniSweAgent(ProcessScaffold):
    installation = Installation("mini_swe_agent", lock("mini_swe_agent.txt"))

    def __init__(self, config: MiniSweAgentConfig):
        self.config = config
        self.without_tools = "scaffold: {name: mini_swe_agent, mode: text}" if config.mode == "tools" else ""

    def command(self, task: Task, place: AgentPlace) -> Command:
        job = {
            "config": CONFIGS[self.config.mode],
            "mode": self.config.mode,
            "settings": self.config.settings,
            "model": place.model,
            "task": task.problem_statement,
            "workdir": place.workdir,
        }
        variables = {"MSWEA_SILENT_STARTUP": "1", "MSWEA_GLOBAL_CONFIG_DIR": f"{place.home}/.mini"}
        return Command(
            [place.python, "-I", f"{place.home}/driver.py", f"{place.home}/job.json"],
            variables,
            {"driver.py": DRIVER.read_text(), "job.json": json.dumps(job)},
        )
