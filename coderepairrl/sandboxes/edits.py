"""The edits of an agent: each change of the working tree that it has made when it asks its model again, or ends.

Seen of agents that run in this process and ask through scaffolds.endpoint.chat; an agent that is a program is one command
to the sandbox, during which nothing may look into it. Several changes in one turn are one edit, a change that is taken
back within the turn is none, and neither is taking one back.
"""
from coderepairrl.sandboxes.base import Sandbox


class Edits:
    def __init__(self, sandbox: Sandbox):
        self.diffs: list[str] = []  # of the whole working tree, after each edit
        self.watched = False  # whether anything was seen at all
        self._sandbox, self._last = sandbox, ""

    async def look(self) -> None:
        """To be called when the agent asks its model."""
        self.watched = True
        self.note(await self._sandbox.diff())

    def note(self, diff: str) -> None:
        """The working tree as it is now."""
        if diff and diff != self._last:
            self.diffs.append(diff)
        self._last = diff
