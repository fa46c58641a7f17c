"""Whatever is sent to whichever endpoint: no crash, an error in OpenAI's form, and nothing of one session in another.

FUZZ_EXAMPLES=20000 pytest tests/gateway/test_gateway_fuzz.py        longer than in the suite
"""

import asyncio
import json
import os

import pytest
from gateway_helpers import END, SHELL, Upstream, call_text, ids_by_character, ids_of, tokenizer
from gateway_helpers import World as OneWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coderepairrl.gateway import GatewayConfig, SamplingConfig, SessionLimits

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "250"))
LIMITS = SessionLimits(max_turns=10**9, max_total_tokens=20_000, max_completion_tokens=64)
WORD = "secret-{}-word"
PATHS = ("/chat/completions", "/completions", "/responses")

ODD = st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\ud83d",
        "\\ud83d",
        "\u2402dummy turn\u2403",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<think>",
        "</think>",
        "{",
        "null",
        "🙂",
        "c00000000",
        "msg_0",
        "{{ 7 * 7 }}",
        "{% for x in y %}",
        "x" * 3000,
        call_text("ls"),
    ]
)
TEXT = ODD | st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.just(2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "input_text", "output_text", "reasoning_text", "image_url"]), "text": TEXT}
    )
    | JSON,
    max_size=2,
)
CONTENT = TEXT | PARTS | st.none()
CALL_ID = st.sampled_from(["c00000000", "c00000001", "c00010000", "a", "", "c0000", "c0000000g", "Ab3dE5g7H"])
NAME = st.sampled_from(["shell", "apply_patch", "", "x y", "größe"])
ARGUMENTS = (
    st.sampled_from(['{"command": "ls"}', "{", "", "[]", '{"input": "x"}', '"x"', '{"a": ' * 300 + "1" + "}" * 300])
    | JSON
)
CALL = st.fixed_dictionaries(
    {"id": CALL_ID, "function": st.fixed_dictionaries({"name": NAME, "arguments": ARGUMENTS})},
    optional={
        "type": st.sampled_from(["function", "custom", "x"]),
        "custom": st.fixed_dictionaries({"name": NAME, "input": TEXT}),
    },
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "assistant", "tool", "robot"]),
        "content": CONTENT,
    },
    optional={
        "name": TEXT,
        "tool_call_id": CALL_ID,
        "tool_calls": st.lists(CALL, max_size=2),
        "reasoning_content": TEXT,
        "refusal": JSON,
    },
)
ITEM = MESSAGE | st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                "message",
                "reasoning",
                "function_call",
                "custom_tool_call",
                "function_call_output",
                "custom_tool_call_output",
                "item_reference",
                "web_search_call",
            ]
        )
    },
    optional={
        "role": st.sampled_from(["user", "assistant"]),
        "content": CONTENT,
        "summary": JSON,
        "call_id": CALL_ID,
        "name": NAME,
        "arguments": ARGUMENTS,
        "input": TEXT,
        "output": CONTENT,
    },
)
TOOL = (
    st.sampled_from(
        [
            SHELL,
            {"type": "function", **SHELL["function"]},
            {"type": "custom", "name": "apply_patch"},
            {"type": "web_search"},
        ]
    )
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["function", "custom"]), "name": NAME},
        optional={"parameters": JSON, "description": TEXT, "format": JSON, "function": JSON},
    )
    | JSON
)
ASSISTANT = {"role": "assistant", "content": "ok"}  # what the upstream mostly says: histories that continue a record


def field(strategy):
    """Mostly what belongs there, sometimes anything."""
    return st.one_of(strategy, strategy, strategy, JSON)


COMMON = {
    "model": field(TEXT),
    "stream": field(st.booleans()),
    "max_tokens": field(st.integers(1, 50)),
    "max_completion_tokens": field(st.integers(1, 50)),
    "max_output_tokens": field(st.integers(1, 50)),
    "n": field(st.integers(1, 3)),
    "stop": field(TEXT | st.lists(TEXT, max_size=3)),
    "tools": field(st.lists(TOOL, max_size=2)),
    "tool_choice": field(st.sampled_from(["none", "auto", "required"])),
    "stream_options": JSON,
    "temperature": JSON,
    "instructions": field(TEXT),
    "previous_response_id": st.none() | TEXT,
    "parallel_tool_calls": JSON,
    "größe": JSON,
}
BODY = st.one_of(
    st.fixed_dictionaries(
        {"messages": field(st.lists(MESSAGE | st.just(ASSISTANT), min_size=1, max_size=4))}, optional=COMMON
    ),
    st.fixed_dictionaries(
        {"input": field(TEXT | st.lists(ITEM | st.just(ASSISTANT), min_size=1, max_size=5))}, optional=COMMON
    ),
    st.fixed_dictionaries({"prompt": field(TEXT | st.lists(st.integers(0, 450), max_size=5))}, optional=COMMON),
    JSON,
)
RAW = st.binary(max_size=200) | st.builds(lambda body, cut: json.dumps(body).encode()[:cut], BODY, st.integers(1, 200))


class World(OneWorld):
    """Two sessions whose clients send anything, one that behaves. The upstream answers with odd texts and calls, and
    notes what it was asked."""

    async def __aenter__(self):
        await super().__aenter__()
        texts = [
            "ok",
            "ok",
            "ok",
            f"<think>\nhm</think>{call_text('ls')}",
            '<tool_call>{"name": "apply_patch", "arguments": {"input": "x"}}</tool_call>',
            "<tool_call>{",
        ]
        self.upstream.reply = lambda prompt: (
            ids_by_character(texts[len(prompt) % len(texts)]) + (ids_of(END) if len(prompt) % 7 else ()),
            "stop" if len(prompt) % 7 else "length",
        )
        self.wild = [self.gateway.open_session(LIMITS, SamplingConfig()) for _ in range(2)]
        self.history = [{"role": "user", "content": WORD.format("tame")}]
        self.checked = 0
        return self

    async def send(self, number: int, body: bytes, path: str) -> int:
        """The status. The body must be answered, with JSON or events."""
        headers = {"Authorization": f"Bearer {self.wild[number].key}"}
        async with self.http.post(self.url + path, data=body, headers=headers) as response:
            data = await response.read()
        if response.status != 200:
            error = json.loads(data)["error"]
            assert response.status in (400, 413) and error["type"] == "invalid_request_error" and error["message"], (
                response.status,
                data,
                body,
            )
        elif response.content_type == "text/event-stream":
            events = [line.removeprefix("data: ") for line in data.decode().split("\n") if line.startswith("data: ")]
            assert all(isinstance(json.loads(event), dict) for event in events if event != "[DONE]") and events
        else:
            assert json.loads(data)["object"] in ("chat.completion", "text_completion", "response")
        return response.status

    async def check(self) -> None:
        """The wild sessions are as they should be, the tame one's conversation goes on as one branch, and no prompt has
        a word of another session."""
        for number, session in enumerate(self.wild):
            assert session.close_reason in (None, "token_limit"), session.close_detail
            for call in session.calls:
                assert call.parent is None or call.parent < call.index
                assert not self._words(call.prompt_ids) - {WORD.format(number)}
            if session.close_reason or len(session.calls) > 200:
                await self.gateway.close_session(session.key)
                self.wild[number] = self.gateway.open_session(LIMITS, SamplingConfig())
        if len(self.history) > 40:
            await self.gateway.close_session(self.session.key)
            self.session = self.gateway.open_session(LIMITS, SamplingConfig())
            self.history = self.history[:1]
        status, answer = await self.post({"messages": self.history})
        assert status == 200, answer
        self.history += [answer["choices"][0]["message"], {"role": "user", "content": "go on"}]
        calls = self.session.calls
        assert [call.parent for call in calls] == [None, *range(len(calls) - 1)] and self._words(
            calls[-1].prompt_ids
        ) == {WORD.format("tame")}

    def _words(self, ids: tuple[int, ...]) -> set[str]:
        text = tokenizer().decode(ids)
        return {word for word in (WORD.format(name) for name in (0, 1, "tame")) if word in text}


@pytest.fixture(scope="module")
def world():
    """One gateway for all examples, in a loop of its own."""
    with asyncio.Runner() as runner:
        made = World(Upstream(), config=GatewayConfig(max_body_bytes=200_000), limits=LIMITS)
        runner.run(made.__aenter__())
        made.run = runner.run
        yield made
        runner.run(made.__aexit__())


def with_word(body, number: int) -> bytes:
    """The body says the session's own word, where its dialect takes one."""
    if isinstance(body, dict):
        for name in ("messages", "input"):
            if isinstance(body.get(name), list):
                body = {**body, name: [*body[name], {"role": "user", "content": WORD.format(number)}]}
        if isinstance(body.get("prompt"), str):
            body = {**body, "prompt": body["prompt"] + WORD.format(number)}
    return json.dumps(body).encode()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
)
@given(body=BODY, path=st.sampled_from(PATHS))
def test_any_json(world, body, path):
    async def example():
        await asyncio.gather(*(world.send(number, with_word(body, number), path) for number in (0, 1)))
        await world.check()

    world.run(example())


@settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
)
@given(body=RAW, path=st.sampled_from(PATHS))
def test_any_bytes(world, body, path):
    async def example():
        await world.send(0, body, path)
        await world.check()

    world.run(example())


@settings(
    max_examples=EXAMPLES // 5,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
)
@given(
    method=st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    path=st.text("/v1chatompleinsrd.%0é ", max_size=20),
    key=st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["Cc"]), max_size=60),
)
def test_any_path_method_and_key(world, method, path, key):
    async def example():
        async with world.http.request(
            method, world.url + "/" + path, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            data = await response.read()
            assert response.status in (200, 401, 404, 405) and (method == "HEAD" or json.loads(data))
        await world.check()

    world.run(example())


@settings(
    max_examples=EXAMPLES // 5,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
)
@given(bodies=st.lists(st.tuples(BODY, st.sampled_from(PATHS), st.booleans()), min_size=2, max_size=6))
def test_many_at_once_some_of_whose_clients_leave(world, bodies):
    async def example():
        tasks = [
            asyncio.create_task(world.send(number % 2, with_word(body, number % 2), path))
            for number, (body, path, _) in enumerate(bodies)
        ]
        await asyncio.sleep(0.002)
        for task, (_, _, leaves) in zip(tasks, bodies):
            if leaves:
                task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled() or task.result() in (200, 400, 413)
        await asyncio.gather(*(session.drain() for session in world.wild))
        await world.check()

    world.run(example())
