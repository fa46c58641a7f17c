"""Your own agent as a command line in YAML; no Python of this project is needed. A worked example is in
examples/command.

    scaffold:
      name: command
      argv: ["{python}", "{home}/agent.py", "{problem_file}"]
      files: {agent.py: examples/command/agent.py}
      requirements: examples/command/lock.txt

It works in the checkout, which is its working directory; what it leaves there is its answer. It finds its model by
OPENAI_BASE_URL and OPENAI_API_KEY, or by the placeholders, and stops when that answers 400 context_length_exceeded. An
exit code other than 0 is an agent_error.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError
from coderepairrl.scaffolds.installation import Installation
from coderepairrl.scaffolds.process_scaffold import AgentPlace, Command, ProcessScaffold
from coderepairrl.types import Task

PROBLEM = "problem.txt"
PLACEHOLDERS = {
    "base_url": "of the model, ends with /v1",
    "api_key": "of this episode",
    "model": "its name",
    "workdir": "the checkout",
    "home": "the agent's own folder: it and /tmp are all else that it may write",
    "problem_file": "the task's problem statement",
    "python": "of the environment that `requirements` make",
    "task_python": "of the task, with what its tests need",
}
_PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z_]+)\}")
_EXACT = re.compile(r"[A-Za-z0-9._-]+(\[[^]]*\])?\s*(==|@)")  # a line of a lock, if it is no option and no continuation


class CommandConfig(Config):
    """An agent of yours: any command line."""

    name: Literal["command"] = "command"
    # with placeholders, as in `variables`; no shell: write ["bash", "-c", "..."] for one
    argv: tuple[str, ...] = Field(min_length=1)
    variables: dict[str, str] = {}  # besides OPENAI_BASE_URL, OPENAI_API_KEY and HOME
    files: dict[str, str] = {}  # path below {home} -> text file of yours, copied there for every episode
    folders: tuple[str, ...] = ()  # absolute paths of folders that it sees, read-only, at the same place
    requirements: str | None = None  # a lock file (uv pip compile --generate-hashes), installed once

    @field_validator("argv", "variables")
    @classmethod
    def _known(cls, value: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        for text in value.values() if isinstance(value, dict) else value:
            for name in _PLACEHOLDER.findall(text):
                if name not in PLACEHOLDERS:
                    raise ValueError(
                        f"{{{name}}} is no placeholder: known are {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}"
                    )
        return value

    @field_validator("folders")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not path.startswith("/"):
                raise ValueError(f"{path} is not absolute: a folder is shown at the path that it has here")
        return value


class CommandScaffold(ProcessScaffold):
    """Raises ConfigError for a file that can't be read or a lock without exact versions."""

    def __init__(self, config: CommandConfig):
        self.config = config
        self.files = {name: _text(path) for name, path in config.files.items()}
        self.installation = Installation("command", _text(config.requirements) if config.requirements else "")
        for line in re.sub(r"\\\n|\s#.*|^#.*", "", self.installation.pip, flags=re.MULTILINE).split("\n"):
            if line.strip() and not line.lstrip().startswith("-") and not _EXACT.match(line.strip()):
                raise ConfigError(
                    f"{config.requirements}: {line.strip()!r} has no exact version: make a lock of it "
                    "(uv pip compile --generate-hashes requirements.txt -o lock.txt)"
                )

    def command(self, task: Task, place: AgentPlace) -> Command:
        values = {
            "base_url": place.base_url,
            "api_key": place.api_key,
            "model": place.model,
            "workdir": place.workdir,
            "home": place.home,
            "problem_file": f"{place.home}/{PROBLEM}",
            "python": place.python,
            "task_python": task.environment.python,
        }

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

        return Command(
            [fill(word) for word in self.config.argv],
            {name: fill(text) for name, text in self.config.variables.items()},
            {**self.files, PROBLEM: task.problem_statement},
            self.config.folders,
        )


def _text(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"scaffold: {path} can't be read ({error}): name a text file, relative to the folder that the program is "
            "started in"
        ) from error
