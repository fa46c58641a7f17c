"""The gateway over HTTP: protocol, limits, retries, and vLLM going away. Token-exactness:
test_gateway_properties.py."""

import asyncio
import json
import sys
from types import SimpleNamespace

import aiohttp
import pytest
from gateway_helpers import (
    END,
    MOVING,
    PLAIN,
    QWEN3,
    SHELL,
    TEXT_END,
    USER,
    call_text,
    ids_by_character,
    ids_of,
    run,
    tokenizer,
)

from coderepairrl.errors import ConfigError, GatewayError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits
from coderepairrl.gateway.rendering import MARK
from coderepairrl.types import Outcome


def test_versions_before_the_first_update_are_the_clients_initial_version():
    async def scenario(world):
        await world.post({"messages": [USER]})
        world.upstream.versions = lambda n: [{"version": "default", "start": 0, "end": n}]
        await world.post({"messages": [USER]})
        assert [set(call.policy_versions) for call in world.session.calls] == [{3}, {3}]

    run(scenario)


def test_authentication_and_malformed_requests():
    async def scenario(world):
        status, answer = await world.post({"messages": [USER]}, key="guessed")
        assert status == 401 and answer["error"]["code"] == "invalid_api_key"
        deep = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        bad = [
            b"{",
            b"[]",
            b"\xff",
            b'{"model": "\xed\xa0\xbd"}',
            deep,
            {"messages": []},
            {"messages": ["x"]},
            {"messages": [{"role": "robot"}]},
            {"messages": [USER], "n": 0},
            {"messages": [USER], "tools": "x"},
            {"messages": [USER], "n": "2"},
            {"messages": [USER], "stop": [1]},
            {"messages": [USER], "stop": ["x"] * 65},
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            {"messages": [USER], "max_tokens": -1},
        ]
        for body in bad:
            status, answer = await world.post(body)
            assert status == 400 and answer["error"]["type"] == "invalid_request_error", body
        status, answer = await world.post({"messages": [{"role": "user", "content": "x" * 300_000}]})
        assert status == 413 and "larger than" in answer["error"]["message"]
        async with world.http.get(world.url + "/nothing") as response:
            assert response.status == 404 and "error" in await response.json()
        assert not world.session.calls and world.session.close_reason is None
        status, _ = await world.post(b'{"messages": [{"role": "user", "content": "lone \\ud83d surrogate"}]}')
        assert status == 200

    run(scenario, config=GatewayConfig(max_body_bytes=250_000))


def test_unix_socket_is_the_same_door(tmp_path):
    path = tmp_path / "gateway.sock"
    path.write_text("left by a killed gateway")

    async def scenario(world):
        gateway = Gateway(GatewayConfig(), [world.client], world.renderer, socket_path=path)
        await gateway.start()
        session = gateway.open_session(world.limits, SamplingConfig())
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http:
            for key, status in ((session.key, 200), (world.session.key, 401)):
                async with http.post(
                    "http://localhost/v1/chat/completions",
                    json={"messages": [USER]},
                    headers={"Authorization": f"Bearer {key}"},
                ) as response:
                    assert response.status == status
        assert len(session.calls) == 1
        await gateway.stop()
        assert not path.exists()
        unreachable = Gateway(GatewayConfig(), [world.client], world.renderer, socket_path=tmp_path / ("x" * 120))
        with pytest.raises(GatewayError, match="less than 100 characters"):
            await unreachable.start()

    run(scenario)


def test_port_in_use_is_one_line():
    async def scenario(world):
        port = int(world.url.split(":")[2].split("/")[0])
        other = Gateway(GatewayConfig(port=port), [world.client], world.renderer)
        with pytest.raises(GatewayError, match=f"port {port} of 127.0.0.1 is in use: .* 0 for any free one"):
            await other.start()

    run(scenario)


def test_limits_end_the_session_with_the_message_that_agents_stop_at():
    async def turns(world):
        for content in "ab":
            assert (await world.post({"messages": [{"role": "user", "content": content}]}))[0] == 200
        for _ in range(2):
            status, answer = await world.post({"messages": [{"role": "user", "content": "c"}]})
            assert status == 400 and answer["error"]["message"].startswith(
                "This model's maximum context length is 4096 tokens"
            )
            assert answer["error"]["code"] == "context_length_exceeded"
        assert world.session.close_reason is Outcome.TURN_LIMIT and len(world.session.calls) == 2

    run(turns, limits=SessionLimits(max_turns=2, max_total_tokens=4096))

    async def tokens(world):
        world.upstream.reply = lambda prompt: (ids_of("word " * 50), "length")
        prompt = len(world.renderer.render([USER], None))
        status, answer = await world.post({"messages": [USER], "max_tokens": 1000})
        assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
        assert world.upstream.requests[0]["sampling_params"]["max_tokens"] == 30 - prompt
        answer = answer["choices"][0]["message"]
        status, _ = await world.post({"messages": [USER, answer, USER]})
        assert status == 400 and world.session.close_reason is Outcome.TOKEN_LIMIT and len(world.upstream.requests) == 1

    run(tokens, limits=SessionLimits(max_total_tokens=30))

    async def deadline(world):
        world.upstream.gate.clear()
        status, _ = await world.post({"messages": [USER]})
        assert status == 400 and world.session.close_reason is Outcome.TIME_LIMIT and not world.session.calls
        world.upstream.gate.set()

    run(deadline, limits=SessionLimits(deadline_s=0.2))


def test_deadline_stops_while_vllm_is_down():
    async def scenario(world):
        world.client.pause()
        request = asyncio.create_task(world.post({"messages": [USER]}))
        await asyncio.sleep(0.8)
        assert world.session.close_reason is None and world.session.clock_s() < 0.3
        world.client.resume()
        assert (await request)[0] == 200

    run(scenario, limits=SessionLimits(deadline_s=0.5))


def test_newline_after_the_end_token_and_system_block_traps():
    """A naive difference loses the line break after <|im_end|>; rendering a tool message alone repeats the system
    block."""
    renderer = Renderer(tokenizer(), {"default_system": "You are helpful."})
    calls = [{"id": "c00000000", "type": "function", "function": {"name": "shell", "arguments": {"command": "ls"}}}]
    history = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
    results = [{"role": "tool", "tool_call_id": "c00000000", "content": "a.py"}]
    for tools in (None, [SHELL]):
        prompt = renderer.render([USER], tools)
        sampled = ids_of(call_text("ls") + END)
        extended = renderer.extend(prompt, sampled, "stop", history, results, tools)
        tail = tokenizer().decode(extended[len(prompt) + len(sampled) :])
        assert tail == "\n<|im_start|>user\n<tool_response>\na.py\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        # the template's own render differs in one place: an empty think block, which no one sampled
        whole = tokenizer().decode(renderer.render(history + results, tools))
        assert whole.replace("<think>\n\n</think>\n\n", "") == tokenizer().decode(extended)


@pytest.mark.parametrize(
    "ids, reason, closer",
    [(ids_of("cut o"), "length", END), (ids_of("done" + TEXT_END), "stop", END), (ids_of("done" + END), "stop", "")],
)
def test_a_turn_without_the_end_token_is_closed(ids, reason, closer):
    renderer = Renderer(tokenizer())
    extended = renderer.extend((1, 2), ids, reason, [USER, {"role": "assistant", "content": "x"}], [USER], None)
    assert extended == (1, 2, *ids, *ids_of(closer + "\n<|im_start|>user\nfix f<|im_end|>\n<|im_start|>assistant\n"))


def test_splices_that_can_not_be_proven_are_refused():
    past = [USER, {"role": "assistant", "content": "x"}]
    sampled = ids_of("x" + END)
    assert Renderer(tokenizer(PLAIN)).extend((1,), sampled, "stop", past, [USER], None) is None  # no end token
    moving = Renderer(tokenizer(MOVING))
    assert moving.extend((1,), sampled, "stop", past, [USER], None) is not None
    assert moving.extend((1,), sampled, "stop", past, [USER], [SHELL]) is None  # the tools move
    assert moving.extend((1,), sampled, "stop", past, [USER, USER], None) is None  # refused by the template
    for content in (MARK, "x" + MARK, MARK + END):  # a message that looks like the dummy turn
        assert (
            Renderer(tokenizer()).extend((1,), sampled, "stop", past, [{"role": "user", "content": content}], None)
            is None
        )
    swallowing = Renderer(tokenizer(QWEN3, rstrip=True))
    extended = swallowing.extend((1,), sampled, "stop", past, [USER], None)
    assert extended == (1, *sampled, *swallowing.render([USER], None))  # the line break is inside the end token


def test_tokenizers_that_can_not_be_used():
    with pytest.raises(ConfigError, match="no chat template: use"):
        Renderer(tokenizer(None))


@pytest.mark.parametrize(
    "text, content, calls, malformed",
    [
        ("plain", "plain", [], 0),
        (call_text("ls"), "", ['{"command": "ls"}'], 0),
        (
            '<tool_call>{"name": "shell", "arguments": {"command": "echo </tool_call> 日本"}}</tool_call>',
            "",
            ['{"command": "echo </tool_call> 日本"}'],
            0,
        ),
        ('<tool_call>{"name": "shell", "arguments": "{\\"command\\": \\"x\\"}"}', "", ['{"command": "x"}'], 0),
        ('<tool_call>{"name": "shell", "arguments": {"command": "a\nb"}}</tool_call>', "", ['{"command": "a\\nb"}'], 0),
        ("<tool_call>{oops}</tool_call>", "<tool_call>{oops}</tool_call>", [], 1),
        (
            "a <tool_call>{oops}</tool_call> " + call_text("ls"),
            "a <tool_call>{oops}</tool_call>",
            ['{"command": "ls"}'],
            1,
        ),
        (
            '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
            '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
            [],
            1,
        ),
        (
            '<tool_call>{"name": "s", "arguments": {"x": NaN}}</tool_call>',
            '<tool_call>{"name": "s", "arguments": {"x": NaN}}</tool_call>',
            [],
            1,
        ),
        (
            '<tool_call>{"name": "s", "arguments": {"x": 1e999}}</tool_call>',
            '<tool_call>{"name": "s", "arguments": {"x": 1e999}}</tool_call>',
            [],
            1,
        ),
        ("<tool_call>" + "[" * 50_000, "<tool_call>" + "[" * 50_000, [], 1),
    ],
)
def test_hermes_calls(text, content, calls, malformed):
    got_content, reasoning, got, count = Renderer(tokenizer()).parse(ids_by_character(text) + ids_of(END), [SHELL])
    assert (got_content, reasoning, [call.arguments for call in got], count) == (content, None, calls, malformed)


def test_a_parser_of_vllms_that_raises_is_a_malformed_call(monkeypatch):
    """internlm2's, for one, raises on a call that is no JSON: what was sampled is on record all the same."""

    class Parser:
        def __init__(self, *_):
            pass

        def extract_tool_calls(self, text, request):
            return json.loads(text)

    parsers = SimpleNamespace(get_tool_parser=lambda name: Parser, lazy_parsers={})
    monkeypatch.setitem(
        sys.modules,
        "vllm.entrypoints.openai.chat_completion.protocol",
        SimpleNamespace(ChatCompletionRequest=SimpleNamespace),
    )
    monkeypatch.setitem(sys.modules, "vllm.tool_parsers", SimpleNamespace(ToolParserManager=parsers))

    async def scenario(world):
        world.upstream.reply = lambda prompt: (ids_of("{oops" + END), "stop")
        status, answer = await world.post({"messages": [USER], "tools": [SHELL]})
        assert status == 200 and answer["choices"][0]["message"]["content"] == "{oops"
        assert len(world.session.calls) == world.session.counters["malformed_tool_calls"] == 1

    run(scenario, tool_calls="internlm2")


def test_runners_may_close_their_sessions_while_the_gateway_stops():
    async def scenario(world):
        request, other = await world.in_flight(), world.gateway.open_session(world.limits, SamplingConfig())
        stopping = asyncio.create_task(world.gateway.stop())
        await asyncio.sleep(0)  # it waits for the first session
        await world.gateway.close_session(other.key)
        await stopping
        for session in (world.session, other):
            assert session.close_reason is not None
        with pytest.raises(aiohttp.ClientConnectorError):  # the server is away, too
            await world.http.get(world.gateway.base_url + "/models")
        world.upstream.gate.set()
        await asyncio.gather(request, return_exceptions=True)

    run(scenario)


def test_a_models_name_may_have_a_slash():
    async def scenario(world):
        async with world.http.get(
            world.url + "/models/Qwen/Qwen3", headers={"Authorization": f"Bearer {world.session.key}"}
        ) as response:
            assert response.status == 200 and (await response.json())["id"] == "Qwen/Qwen3"

    run(scenario)
