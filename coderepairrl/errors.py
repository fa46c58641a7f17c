"""One class a boundary. Each message says the cause and the remedy in one line; programs print it and exit non-zero."""

import difflib
from collections.abc import Callable, Iterable


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str, written: Callable[[str], str] = repr, likeness: float = 0.4
) -> str:
    """The remedy for a word that isn't known: "did you mean 'x'?", the nearest of those that are, as the user would
    write it; `otherwise` where none is near. `likeness`: in [0, 1], what counts as near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f"did you mean {written(near[0])}?" if near else otherwise


class CodeRepairError(Exception):
    """Base of all errors that this project raises on purpose."""


class ConfigError(CodeRepairError):
    """The configuration is wrong: the user must change it."""


class TaskError(CodeRepairError):
    """A task's row or its environment is wrong."""


class SandboxError(CodeRepairError):
    """The sandbox could not be made or broke: infrastructure, never the agent's fault."""


class ScaffoldError(CodeRepairError):
    """The coding agent broke in its own code: an agent error, gets its reward."""


class GatewayError(CodeRepairError):
    """The gateway could not serve a request."""


class EngineError(CodeRepairError):
    """vLLM or the trainer failed: infrastructure."""
