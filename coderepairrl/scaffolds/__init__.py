"""Coding agents behind one small protocol: a base URL, a key, a sandbox. One file a scaffold, one dict of names.

A scaffold returns when the agent ended by itself. It raises ScaffoldError when the agent broke, and stops quietly when the
gateway has closed the session. What the agent claims is ignored: the outcome is decided by the episode.
"""
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from coderepairrl.sandboxes import Sandbox
from coderepairrl.types import Task


@dataclass(frozen=True)
class Endpoint:
    """Where the agent finds its model. `http` is a connection pool that all coroutine scaffolds share."""
    base_url: str  # ends with /v1
    api_key: str
    http: aiohttp.ClientSession


class Scaffold(Protocol):
    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None: ...


def make_scaffold(config) -> Scaffold:
    from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig
    scaffolds = {TerminalConfig: Terminal}
    return scaffolds[type(config)](config)
