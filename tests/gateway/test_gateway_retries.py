"""A request that is made again, and vLLM that goes away, comes back, refuses: what was sampled counts once."""

import asyncio
import json

import pytest
from gateway_helpers import END, SHELL, USER, call_text, ids_by_character, ids_of, read_request, run

from coderepairrl.gateway import SessionLimits
from coderepairrl.gateway.rendering import TemplateRefusal
from coderepairrl.types import Outcome


def test_retries_are_joined_or_answered_from_the_record():
    async def scenario(world):
        body, retry = {"messages": [USER]}, {"x-stainless-retry-count": "1"}
        world.upstream.gate.clear()
        first, second = asyncio.create_task(world.post(body)), asyncio.create_task(world.post(body))
        await asyncio.sleep(0.1)
        world.upstream.gate.set()
        assert await first == await second and len(world.upstream.requests) == 1  # joined in flight
        assert (await world.post(body, headers=retry))[0] == 200
        assert len(world.session.calls) == 1  # the SDK says that it retries
        await world.post(body)
        assert len(world.session.calls) == 2  # delivered, and asked again: a new sample
        assert world.gateway.counters["joined_retries"] == 2

        world.upstream.gate.clear()
        impatient = {"messages": [USER, USER]}
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(world.post(impatient), 0.1)
        world.upstream.gate.set()
        await asyncio.sleep(0.1)
        assert len(world.session.calls) == 3  # the client hung up: the completion is on record all the same
        assert (await world.post(impatient))[0] == 200 and len(world.upstream.requests) == 3

    run(scenario)


def test_n_choices_and_stop_strings():
    async def scenario(world):
        replies = iter(["a", "b", "one STOP two"])
        world.upstream.reply = lambda prompt: (ids_of(next(replies) + END), "stop")
        _, answer = await world.post({"messages": [USER], "n": 2})
        assert sorted(c["message"]["content"] for c in answer["choices"]) == ["a", "b"]
        assert [(c.parent, c.parent_part) for c in world.session.calls] == [(None, None), (0, "prompt")]
        _, answer = await world.post({"messages": [USER], "stop": "STOP"})
        assert answer["choices"][0]["message"]["content"] == "one " and world.upstream.requests[2]["sampling_params"][
            "stop"
        ] == ["STOP"]

    run(scenario)


def test_samples_that_read_the_same_are_told_apart_by_their_tool_call_ids():
    async def scenario(world):
        replies = iter(
            [ids_of(call_text("ls") + END), ids_by_character(call_text("ls")) + ids_of(END), ids_of("ok" + END)]
        )
        world.upstream.reply = lambda prompt: (next(replies), "stop")
        _, answer = await world.post({"messages": [USER], "tools": [SHELL], "n": 2})
        first = answer["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "a.py"}
        await world.post({"messages": [USER, first, result], "tools": [SHELL]})
        one, other, last = world.session.calls
        assert one.completion_ids != other.completion_ids and (last.parent, last.parent_part) == (0, "completion")
        assert last.prompt_ids[: len(one.prompt_ids + one.completion_ids)] == one.prompt_ids + one.completion_ids

    run(scenario)


def test_vllm_gone_and_back_gets_the_same_prompt_ids():
    async def scenario(world):
        upstream, request = world.upstream, await world.in_flight()
        await upstream.stop()  # killed with the request in flight
        await asyncio.sleep(0.4)
        upstream.gate.set()
        await upstream.start()  # the same port
        status, _ = await request
        assert status == 200 and len(upstream.requests) == 2 and len(world.session.calls) == 1
        assert upstream.requests[0]["token_ids"] == upstream.requests[1]["token_ids"]
        assert upstream.requests[0]["request_id"] != upstream.requests[1]["request_id"]
        assert world.gateway.counters["reissued"] == world.client.reissues == 1 and world.client.down_s() > 0.3
        replies = iter([500, (ids_of("half"), "abort"), (ids_of("ok" + END), "stop")])
        upstream.reply = lambda prompt: next(replies)
        assert (await world.post({"messages": [USER, USER]}))[0] == 200 and world.client.reissues == 3
        assert world.session.calls[1].completion_ids == ids_of("ok" + END)

    run(scenario)


def test_a_supervisor_may_clear_and_set_the_event_itself():
    async def scenario(world):
        upstream, request = world.upstream, await world.in_flight()
        world.client.available.clear()
        await upstream.stop()
        upstream.gate.set()
        await upstream.start()
        await asyncio.sleep(0.6)
        assert len(upstream.requests) == 1  # healthy again, but the supervisor has not given it free
        world.client.available.set()
        assert (await request)[0] == 200
        down_s = world.client.down_s()
        await asyncio.sleep(0.05)
        assert 0.5 < down_s == world.client.down_s()  # the agents' clocks run again

    run(scenario)


def test_closing_gives_up_what_is_in_flight():
    async def scenario(world):
        request = await world.in_flight()
        session = await world.gateway.close_session(world.session.key)
        world.upstream.gate.set()
        assert (await request)[0] == 400 and session.close_reason is Outcome.SUBMITTED and not session.calls
        assert [event["kind"] for event in session.events] == ["closed", "cancelled"]
        assert (await world.post({"messages": [USER]}, key=session.key))[0] == 401

    run(scenario)


def test_vllm_away_for_too_long_is_an_infrastructure_error():
    async def scenario(world):
        await world.upstream.stop()
        status, answer = await world.post({"messages": [USER]})
        assert status == 400 and world.session.close_reason is Outcome.INFRASTRUCTURE_ERROR
        assert "did not come back" in world.session.close_detail
        await world.upstream.start()

    run(scenario, wait_s=0.6)


def test_a_request_that_vllm_refuses_is_not_repeated():
    async def scenario(world):
        world.upstream.reply = lambda prompt: 400
        assert (await world.post({"messages": [USER]}))[0] == 400
        assert world.session.close_reason is Outcome.INFRASTRUCTURE_ERROR and len(world.upstream.requests) == 1

    run(scenario)


def test_a_call_counts_once_in_the_moment_when_it_is_recorded():
    async def scenario(world):
        first, second = (json.dumps({"messages": [{"role": "user", "content": text}]}).encode() for text in "ab")
        task = asyncio.create_task(world.session.answer(read_request(world.session, first)))
        while not world.session.calls:
            await asyncio.sleep(0)
        await world.session.answer(read_request(world.session, second))  # in the same step of the event loop
        await task
        assert len(world.session.calls) == 2 and world.session.close_reason is None

    run(scenario, limits=SessionLimits(max_turns=2, max_total_tokens=4096))


def test_another_try_in_the_moment_when_the_first_failed_is_not_forgotten(monkeypatch):
    async def scenario(world):
        session, real, refusals = world.session, world.renderer.render, [TemplateRefusal("once")]

        def render(*arguments):
            if refusals:
                raise refusals.pop()
            return real(*arguments)

        monkeypatch.setattr(world.renderer, "render", render)
        body = json.dumps({"messages": [USER]}).encode()
        first = asyncio.create_task(session.answer(read_request(session, body)))
        while not (session._exchanges and next(iter(session._exchanges.values())).task.done()):
            await asyncio.sleep(0)
        world.upstream.gate.clear()
        asyncio.get_running_loop().call_later(0.3, world.upstream.gate.set)
        retries = []
        asyncio.get_running_loop().call_later(
            0.1, lambda: retries.append(asyncio.create_task(session.answer(read_request(session, body))))
        )
        await session.answer(read_request(session, body))
        await asyncio.gather(first, *retries, return_exceptions=True)
        assert isinstance(first.exception(), TemplateRefusal) and len(world.upstream.requests) == 1  # joined in flight
        assert session.counters["joined_retries"] == len(retries) == 1

    run(scenario)
