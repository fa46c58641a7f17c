"""One class a boundary. Each message says the cause and the remedy in one line; programs print it and exit non-zero."""


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
