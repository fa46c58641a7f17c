"""Installs a coding agent into the cache, once and with network; runs need none after that, and do the same if it was
left out.

    python scripts/install_scaffold.py mini_swe_agent                          or codex, aider
    python scripts/install_scaffold.py examples/command/quickstart.yaml        the agent of a run's configuration
    python scripts/install_scaffold.py codex cache=/data/environments          the folder of environments.cache

Prints the folder. Several at once, on several machines, do no harm.
"""

import asyncio
import sys
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from coderepairrl.config import Config, load
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError
from coderepairrl.run.program import program
from coderepairrl.scaffolds import SCAFFOLDS, ScaffoldConfig, make_scaffold
from coderepairrl.scaffolds.installation import install
from coderepairrl.scaffolds.process_scaffold import ProcessScaffold


class Agent(Config):
    """What of a run's configuration says which agent; the rest is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    scaffold: ScaffoldConfig  # the agent
    environments: EnvironmentsConfig = EnvironmentsConfig()


class Run(Config):
    model_config = ConfigDict(extra="ignore", frozen=True)
    rollout: Agent


def agent_of(argument: str) -> Agent:
    named = {config.model_fields["name"].default: config for config in SCAFFOLDS}
    if argument in named:
        if any(field.is_required() for field in named[argument].model_fields.values()):
            raise ConfigError(f"{argument} needs its settings: give the YAML of a run that uses it")
        return Agent(scaffold=TypeAdapter(ScaffoldConfig).validate_python({"name": argument}))
    if not Path(argument).exists():
        raise ConfigError(f"{argument}: neither a scaffold ({', '.join(named)}) nor a YAML file")
    return load(Run, argument).rollout


@program(Run)
def main(arguments: list[str]) -> None:
    agent = agent_of(arguments[0])
    environments = agent.environments
    for argument in arguments[1:]:
        if not argument.startswith("cache="):
            raise ConfigError(f"{argument!r}: only cache=FOLDER can follow")
        environments = environments.model_copy(update={"cache": argument.removeprefix("cache=")})
    scaffold = make_scaffold(agent.scaffold)
    scaffold = getattr(scaffold, "inner", scaffold)  # of a control what it controls
    if not isinstance(scaffold, ProcessScaffold):
        raise ConfigError(f"{agent.scaffold.name} is part of this project: nothing has to be installed for it")
    print(asyncio.run(install(scaffold.installation, environments)).folder)


if __name__ == "__main__":
    main(sys.argv[1:])
