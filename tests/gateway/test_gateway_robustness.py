"""What one client does harms no other: slow, gone, huge, garbled; and keys open their own session only."""

import asyncio
import gzip
import json
import socket
import threading
from pathlib import Path

import aiohttp
import pytest
from gateway_helpers import END, USER, ids_by_character, ids_of, run, tokenizer

from coderepairrl.gateway import GatewayConfig, SamplingConfig, SessionLimits
from coderepairrl.gateway.rendering import TemplateRefusal
from coderepairrl.types import Outcome

ROOMY = SessionLimits(max_turns=1000, max_total_tokens=4_000_000)


def echo(prompt):
    """The prompt's last words, in other ids than tokenising them gives."""
    text = tokenizer().decode(prompt).rpartition("<|im_start|>user\n")[2].partition(END)[0]
    return ids_by_character(text[-40:]) + ids_of(END), "stop"


def said(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


async def raw(world, head: bytes, buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which so much was sent; {key} in the head is the session's. buffer: so little is taken before it
    is read."""
    host, port = world.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, limit=buffer or 2**16)
    writer.write(head.replace(b"{key}", world.session.key.encode()))
    await writer.drain()
    return reader, writer


def post_of(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {{key}}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def test_slow_clients_and_clients_that_leave_harm_nobody():
    async def scenario(world):
        world.upstream.reply = echo
        other = world.gateway.open_session(ROOMY, SamplingConfig())
        body = json.dumps({"messages": [{"role": "user", "content": "slow"}]}).encode()
        slow = [await raw(world, post_of(body)[:-5]) for _ in range(20)]
        left = [await raw(world, post_of(body)[:cut]) for cut in (10, 60, 150, -30)]
        for _, writer in left:
            writer.transport.abort()
        assert said((await world.post({"messages": [USER]}, key=other.key))[1]) == "fix f"
        for number, (_, writer) in enumerate(slow):  # the same body from twenty connections at once: one sample
            writer.write(body[-5:])
        answers = [await reader.readuntil(b"}}") for reader, _ in slow]
        assert all(b'"content": "slow"' in answer for answer in answers) and len(world.session.calls) == 1
        for _, writer in slow:
            writer.close()

    run(scenario, limits=ROOMY)


def test_a_client_that_leaves_in_mid_stream_gets_the_same_with_its_retry():
    async def scenario(world):
        # more than the connection's buffers hold
        number = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2]) // 15 + 20_000
        text, ids = "<tool_response>" * number, ids_of("<tool_response>") * number + ids_of(END)
        world.upstream.reply = lambda prompt: (ids, "stop")
        body = json.dumps({"messages": [USER], "stream": True}).encode()
        reader, writer = await raw(world, post_of(body), buffer=4096)
        await reader.readexactly(100)
        writer.transport.abort()
        other = world.gateway.open_session(ROOMY, SamplingConfig())
        assert (await world.post({"messages": [USER]}, key=other.key))[0] == 200
        headers = {"Authorization": f"Bearer {world.session.key}"}
        async with world.http.post(world.url + "/chat/completions", data=body, headers=headers) as response:
            assert (
                text
                in json.loads((await response.read()).partition(b"\n\n")[0].removeprefix(b"data: "))["choices"][0][
                    "delta"
                ]["content"]
            )
        assert len(world.session.calls) == 1 and world.gateway.counters["joined_retries"] == 1

    run(scenario, limits=SessionLimits(max_total_tokens=10**8, max_completion_tokens=10**8))


def test_a_huge_message_does_not_keep_others_waiting(monkeypatch):
    async def scenario(world):
        world.upstream.reply = echo
        begun, goes_on, real = threading.Event(), threading.Event(), world.renderer.encode

        def encode(text, begins=False):
            if len(text) > 100_000:
                begun.set()
                assert goes_on.wait(30)
            return real(text, begins)

        monkeypatch.setattr(world.renderer, "encode", encode)  # as long as it may take
        huge = asyncio.create_task(
            world.post({"messages": [{"role": "user", "content": "a long story " * 20_000 + "end"}]})
        )
        while not begun.is_set():
            await asyncio.sleep(0.01)
        other = world.gateway.open_session(ROOMY, SamplingConfig())
        for turn in range(3):
            assert (
                said((await world.post({"messages": [{"role": "user", "content": f"turn {turn}"}]}, key=other.key))[1])
                == f"turn {turn}"
            )
        goes_on.set()
        assert (await huge)[0] == 200 and len(world.session.calls[0].prompt_ids) > 50_000

    run(scenario, limits=ROOMY)


def test_what_can_not_fit_is_refused_before_it_is_tokenised(monkeypatch):
    async def scenario(world):
        monkeypatch.setattr(world.renderer, "encode", lambda *arguments: pytest.fail("tokenised"))
        status, _ = await world.post({"messages": [{"role": "user", "content": "x" * 2_000_000}]})
        assert (
            status == 400
            and world.session.close_reason is Outcome.TOKEN_LIMIT
            and "2000000 characters" in world.session.close_detail
        )

    run(scenario)


def test_bodies_that_are_no_requests():
    async def scenario(world):
        status, answer = await world.post(gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"})
        assert status == 413 and "larger than" in answer["error"]["message"]
        zipped = gzip.compress(json.dumps({"messages": [USER]}).encode())
        assert (await world.post(zipped, headers={"Content-Encoding": "gzip"}))[0] == 200
        status, answer = await world.post(b"not gzip at all", headers={"Content-Encoding": "gzip"})
        assert status == 400
        for garbage in (
            b"\x00\x01\x02\r\n\r\n",
            b"POST / HTTP/9.9\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            post_of(b"{}").replace(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"zz\r\n",
        ):
            reader, writer = await raw(world, garbage)
            assert (await reader.read(2000)).startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
            writer.close()
        assert (await world.post({"messages": [USER]}))[0] == 200

    run(scenario, config=GatewayConfig(max_body_bytes=1_000_000), limits=ROOMY)


def test_a_key_opens_its_own_session_only():
    async def scenario(world):
        world.upstream.reply = echo
        other = world.gateway.open_session(ROOMY, SamplingConfig())
        keys = {world.gateway.open_session(ROOMY, SamplingConfig()).key for _ in range(100)}
        assert len(keys) == 100 and all(len(key) >= 43 for key in keys)  # 256 bits
        body = {"messages": [{"role": "user", "content": "mine"}]}
        _, answer = await world.post(body)
        # no other session's record answers it
        _, copied = await world.post(body, key=other.key, headers={"x-stainless-retry-count": "1"})
        assert len(world.upstream.requests) == 2 and copied["choices"] == answer["choices"]
        stolen = {
            "messages": [
                *body["messages"],
                {"role": "assistant", "content": "secret"},
                {"role": "user", "content": "go on"},
            ]
        }
        await world.post(stolen, key=other.key)
        assert [call.parent for call in other.calls] == [None, None] and len(world.session.calls) == 1
        for key in (
            "",
            " ",
            "x",
            world.session.key[:-1],
            world.session.key + "x",
            world.session.key.swapcase(),
            "null",
            "é",
        ):
            async with world.http.post(
                world.url + "/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
            ) as response:
                assert response.status == 401
        for headers in (
            {},
            {"Authorization": world.session.key},
            {"Authorization": f"Basic {world.session.key}"},
            {"X-API-Key": world.session.key},
        ):
            async with world.http.post(world.url + "/responses", json=body, headers=headers) as response:
                assert response.status == 401 and (await response.json())["error"]["code"] == "invalid_api_key"
        await world.gateway.close_session(other.key)
        assert (await world.post(body, key=other.key))[0] == 401 and (await world.post(body))[0] == 200

    run(scenario, limits=ROOMY)


def test_a_mistake_of_ours_is_an_openai_error_and_one_sessions(monkeypatch, caplog):
    async def scenario(world):
        real = world.renderer.parse
        monkeypatch.setattr(world.renderer, "parse", lambda ids, *rest: 1 / 0 if len(ids) == 1 else real(ids, *rest))
        world.upstream.reply = lambda prompt: (ids_of(END), "stop")
        status, answer = await world.post({"messages": [USER]})
        assert (
            status == 500
            and answer["error"]["type"] == "server_error"
            and "ZeroDivisionError" in answer["error"]["message"]
        )
        assert world.session.close_reason is None or world.session.close_reason is Outcome.INFRASTRUCTURE_ERROR
        world.upstream.reply = echo
        other = world.gateway.open_session(ROOMY, SamplingConfig())
        assert (await world.post({"messages": [USER]}, key=other.key))[0] == 200

    run(scenario)
    assert "ZeroDivisionError" in caplog.text


def test_requests_wait_while_vllm_is_held_and_not_for_ever():
    async def scenario(world):
        world.client.pause()
        waiting = asyncio.create_task(world.post({"messages": [USER]}))
        await asyncio.sleep(0.1)
        assert not world.upstream.requests and not waiting.done()
        world.client.resume()
        assert (await waiting)[0] == 200
        world.client.pause()
        status, _ = await world.post({"messages": [USER, USER]})
        assert (
            status == 400
            and world.session.close_reason is Outcome.INFRASTRUCTURE_ERROR
            and "was held for more than 0.5 s" in world.session.close_detail
        )
        world.client.resume()

    run(scenario, wait_s=0.5)


def test_an_answer_that_is_not_vllms_is_an_infrastructure_error():
    async def scenario(world):
        world.upstream.versions = lambda n: "nonsense"
        assert (await world.post({"messages": [USER]}))[0] == 400
        assert (
            world.session.close_reason is Outcome.INFRASTRUCTURE_ERROR
            and "not the vLLM 0.32" in world.session.close_detail
        )

    run(scenario)


def test_many_keys_in_flight_when_the_gateway_stops():
    async def scenario(world):
        world.upstream.gate.clear()
        sessions = [world.gateway.open_session(ROOMY, SamplingConfig()) for _ in range(20)]
        requests = [asyncio.create_task(world.post({"messages": [USER]}, key=session.key)) for session in sessions]
        while len(world.upstream.requests) < 20:
            await asyncio.sleep(0.01)
        await world.gateway.stop()
        done = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(one, aiohttp.ClientError) or one[0] == 400 for one in done) and not any(
            session.calls for session in sessions
        )
        world.upstream.gate.set()

    run(scenario)


def test_arguments_that_hold_half_a_character_are_no_mistake_of_ours():
    """The escape is inside of the arguments' text, where the body's own JSON does not show it."""

    async def scenario(world):
        call = {
            "id": "a",
            "type": "function",
            "function": {"name": "shell", "arguments": '{"command": "\\ud83d \\ud83d\\ude42"}'},
        }
        status, _ = await world.post(
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "a", "content": "x"},
                ]
            }
        )
        assert status == 200 and '"\ufffd \U0001f642"' in tokenizer().decode(world.session.calls[0].prompt_ids)

    run(scenario)


def test_names_that_a_client_makes_up_do_not_fill_the_record(monkeypatch):
    async def scenario(world):
        def refuse(*_):
            raise TemplateRefusal("no")

        monkeypatch.setattr(world.renderer, "render", refuse)  # costs no turn, so it can be asked for ever
        for turn in range(3):
            status, _ = await world.post(
                {"messages": [USER], **{f"{turn} {number} {'x' * 200}": 1 for number in range(150)}}
            )
            assert status == 400
        assert sum(len(name) for event in world.session.events for name in event["fields"]) <= 100 * 100

    run(scenario)
