"""An engine that says what a script says: it stands where vLLM stands, behind the real gateway, and what it says is
recorded like a policy's words.

The script of an episode is found by its session's `cache_salt`. Demonstrations are recorded so, and recorded outputs
replayed.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from coderepairrl.errors import EngineError
from coderepairrl.gateway.vllm_client import Completion

NOT_LEARNT = -1  # policy version of words that are shown and never learnt


@dataclass(frozen=True)
class Line:
    """What is said in answer to one prompt. A version of NOT_LEARNT: supervised fine-tuning leaves it out."""

    token_ids: tuple[int, ...]
    version: int = 0
    finish_reason: str = "stop"


class ScriptedClient:
    """Has VLLMClient's interface. `left` tells after an episode whether the agent has heard all of its script."""

    url = "script"

    def __init__(self):
        self.available = asyncio.Event()
        self.available.set()
        self._scripts: dict[str, deque[Line]] = {}

    def prepare(self, salt: str, lines: Iterable[Line]) -> None:
        self._scripts[salt] = deque(lines)

    def left(self, salt: str) -> int:
        """How many lines nobody has asked for. The script is forgotten."""
        return len(self._scripts.pop(salt, ()))

    async def generate(
        self,
        prompt_ids: tuple[int, ...],
        *,
        max_tokens: int,
        temperature: float,
        stop_token_ids: tuple[int, ...],
        cache_salt: str | None,
        request_id: str,
        stop: tuple[str, ...] = (),
    ) -> Completion:
        if not self._scripts.get(cache_salt):
            raise EngineError("the script is at its end, and the agent asks for more")
        line = self._scripts[cache_salt].popleft()
        ids = line.token_ids[:max_tokens]
        return Completion(
            ids,
            (0.0,) * len(ids),
            (line.version,) * len(ids),
            line.finish_reason if len(ids) == len(line.token_ids) else "length",
        )

    def down_s(self) -> float:
        return 0.0

    def pause(self) -> None:
        """Nothing can be away."""

    resume = pause

    async def close(self) -> None:
        """Nothing is held."""
