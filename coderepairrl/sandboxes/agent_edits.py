"""The edits of an agent: each change of the base commit's files that it has made when it asks its model again, or ends.

Seen of agents that run in this process and ask through scaffolds.endpoint.chat; an agent that is a program is one
command
to the sandbox, during which nothing may look into it. Several changes in one turn are one edit, a change that is taken
back within the turn is none, and neither is going back to the base commit. New files alone, such as a script that
reproduces the bug, are an edit only where the agent has changed nothing else by its end.
"""

import re

from coderepairrl.sandboxes.protocol import Sandbox

MAX_HEADER_CHARS = 10_000  # of a section, with two paths of the longest kind
NEW_FILE = re.compile(r"(?m)\Adiff --git .*\nnew file mode ")


class Edits:
    def __init__(self, sandbox: Sandbox):
        self.diffs: list[str] = []  # of the whole working tree, after each edit
        self.calls = 0  # that the agent has begun to make; of one that isn't seen 0
        self.calls_at_last = 0  # made when the working tree came to be what it is
        self._sandbox, self._last = sandbox, ""

    async def look(self) -> None:
        """To be called when the agent asks its model."""
        self._note(await self._sandbox.diff())
        self.calls += 1

    def end(self, diff: str) -> None:
        """The working tree that the agent has left."""
        self._note(diff)
        if diff and not self.diffs:
            self.diffs.append(diff)

    def _note(self, diff: str) -> None:
        if diff == self._last:
            return
        if _of_base(diff) and _of_base(diff) != _of_base(self._last):
            self.diffs.append(diff)
        self._last, self.calls_at_last = diff, self.calls


def _of_base(diff: str) -> list[str]:
    """The sections of a diff that change files of the base commit."""
    sections = f"\n{diff}".split("\ndiff --git ")[1:]  # not by a pattern, which takes a second for tens of megabytes
    return [section for section in sections if not NEW_FILE.match(f"diff --git {section[:MAX_HEADER_CHARS]}")]
