"""Who calls, a part of bench_gateway.py: texts, conversations, and where their calls go."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import aiohttp
from bench_gateway_servers import SAID, Server

from coderepairrl.gateway.call_forms import call_id
from coderepairrl.models.tokenizer import load_tokenizer
from coderepairrl.scaffolds.terminal import TOOLS

CONTENT = (Path(json.__file__).parent / "decoder.py").read_text() + (
    Path(asyncio.__file__).parent / "tasks.py"
).read_text()


class Texts:
    """Pieces of source code of so many tokens."""

    def __init__(self, model: Path):
        self.tokenizer = load_tokenizer(model)
        self._ids = self.tokenizer.encode(CONTENT, add_special_tokens=False)

    def piece(self, tokens: int) -> str:
        start = random.randrange(len(self._ids))
        return self.tokenizer.decode((self._ids[start:] + self._ids * (1 + tokens // len(self._ids)))[:tokens])


class Conversation:
    """What an agent sends, turn by turn: the model says SAID, a tool answers."""

    def __init__(self, texts: Texts, first_tokens: int, turn_tokens: int):
        self.texts, self.turn_tokens = texts, turn_tokens
        self.messages = [
            {"role": "system", "content": texts.piece(first_tokens // 3)},
            {"role": "user", "content": texts.piece(first_tokens * 2 // 3)},
        ]
        self.turns = 0

    def body(self) -> bytes:
        return json.dumps({"model": "m", "messages": self.messages, "tools": TOOLS}).encode()

    def answered(self) -> None:
        call = {
            "id": call_id(self.turns, 0),
            "type": "function",
            "function": {"name": "shell", "arguments": SAID.partition('"arguments": ')[2].partition("}\n")[0]},
        }
        self.messages += [
            {"role": "assistant", "content": SAID.partition("\n")[0], "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": self.texts.piece(self.turn_tokens)},
        ]
        self.turns += 1


class Target:
    """Where calls go: the null upstream, the null proxy, or the gateway, which wants a session for each
    conversation."""

    def __init__(self, name: str, measured: Server, http: aiohttp.ClientSession):
        self.name, self.server, self.http = name, measured, http

    async def open(self, query: str = "") -> tuple[str, dict[str, str]]:
        """(URL of chat completions, headers)"""
        if self.name != "gateway":
            return self.server.url + "/v1/chat/completions", {}
        async with self.http.post(self.server.url + "/sessions" + query) as response:
            opened = await response.json()
        return opened["base_url"] + "/chat/completions", {"Authorization": f"Bearer {opened['key']}"}

    async def close(self, headers: dict[str, str], query: str = "") -> Any:
        if headers:
            async with self.http.delete(
                f"{self.server.url}/sessions/{headers['Authorization'][7:]}{query}"
            ) as response:
                return await response.json()

    async def call(self, url: str, headers: dict[str, str], body: bytes) -> dict:
        async with self.http.post(url, data=body, headers=headers) as response:
            data = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{self.name} answered {response.status}: {data[:300]!r}")
        return data


def row(*cells: Any) -> None:
    print("".join(f"{cell:<34}" if i == 0 else f"{cell:>13}" for i, cell in enumerate(cells)), flush=True)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
