"""codex, OpenAI's command line agent, from npm: Responses API, streaming. Its own sandbox and approvals are off, since
it is in ours; it asks nobody for updates, models, plugins or analytics. What it says and how it works is its own:
prompts, tools, compaction.
"""

import platform
from typing import Any, Literal

from pydantic import PositiveInt

from coderepairrl.config import Config
from coderepairrl.scaffolds.installation import Installation, lock
from coderepairrl.scaffolds.process_scaffold import AgentPlace, Command, ProcessScaffold
from coderepairrl.types import Task

VENDOR = "node_modules/@openai/codex-linux-{}/vendor/{}-unknown-linux-musl"
ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}
KEY = "OPENAI_API_KEY"
INSTRUCTIONS = "instructions.md"
# Features that talk to their maker, need pictures or a user, or start more agents. Each that stays on puts its tools
# and words into the prompt.
OFF = (
    "apps",
    "browser_use",
    "computer_use",
    "goals",
    "hooks",
    "image_generation",
    "in_app_browser",
    "plugins",
    "remote_plugin",
    "shell_snapshot",
    "skill_search",
    "tool_suggest",
    "view_image",
)


class CodexConfig(Config):
    """OpenAI's codex command line, unmodified."""

    name: Literal["codex"] = "codex"
    # tokens, after which it summarises its history; null: what it assumes of a model that it does not know
    context_window: PositiveInt | None = None
    instructions: str | None = None  # in place of its own 20 kB: for models of short context
    settings: dict[str, Any] = {}  # more of its config.toml


class Codex(ProcessScaffold):
    installation = Installation("codex", npm=lock("codex.json"))
    without_tools = "scaffold: {name: terminal_text}"

    def __init__(self, config: CodexConfig):
        self.config = config

    def command(self, task: Task, place: AgentPlace) -> Command:
        machine = platform.machine()
        # its launcher needs node, the program doesn't
        vendor = place.installed.folder / VENDOR.format(ARCHITECTURES[machine], machine)
        argv = [
            str(vendor / "bin/codex"),
            "exec",
            "--strict-config",
            "--skip-git-repo-check",
            "--ephemeral",
            "--color",
            "never",
            "-C",
            place.workdir,
            "-",
        ]
        files = {"problem.txt": task.problem_statement, ".codex/config.toml": toml(self._settings(place))}
        if self.config.instructions is not None:
            files[INSTRUCTIONS] = self.config.instructions
        return Command(
            ["/bin/sh", "-c", 'exec "$@" <"$0"', f"{place.home}/problem.txt", *argv],
            {"CODEX_HOME": f"{place.home}/.codex"},
            files,
        )

    def _settings(self, place: AgentPlace) -> dict[str, Any]:
        own = {"model_context_window": self.config.context_window} if self.config.context_window else {}
        if self.config.instructions is not None:
            own["model_instructions_file"] = f"{place.home}/{INSTRUCTIONS}"
        return {
            "model": place.model,
            "model_provider": "gateway",
            "approval_policy": "never",
            "sandbox_mode": "danger-full-access",
            "web_search": "disabled",
            "check_for_update_on_startup": False,
            "analytics": {"enabled": False},
            "feedback": {"enabled": False},
            "history": {"persistence": "none"},
            "model_providers": {
                "gateway": {
                    "name": "gateway",
                    "base_url": place.base_url,
                    "env_key": KEY,
                    "wire_api": "responses",
                    "request_max_retries": 4,
                    "stream_max_retries": 4,
                    "stream_idle_timeout_ms": 24 * 3600 * 1000,
                }
            },  # while vLLM is away its requests wait
            "features": dict.fromkeys(OFF, False),
            "agents": {"enabled": False},
            "skills": {"bundled": {"enabled": False}},
            "tools": {"experimental_request_user_input": {"enabled": False}},
            **own,
            **self.config.settings,
        }


def toml(tree: dict[str, Any]) -> str:
    """Values of these types only: str, int, float, bool, lists of them, mappings."""
    return "".join(f"{_quoted(key)} = {_value(value)}\n" for key, value in tree.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _quoted(value) if isinstance(value, str) else str(value).lower()


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or c == "\x7f" else c for c in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
