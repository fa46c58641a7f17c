"""The API's dialects through the official `openai` client: what it sends is understood, what it gets back continues
token for token."""

import asyncio
import json

import aiohttp
import openai
import pytest
from dialect_helpers import CUSTOM, THOUGHT, continued, patch_text
from gateway_helpers import END, SHELL, TEXT_END, USER, call_text, ids_by_character, ids_of, run, tokenizer

from coderepairrl.gateway import GatewayConfig, SessionLimits


def test_chat_completions_streaming_and_not():
    async def scenario(world):
        text = f"{THOUGHT}Look:\n{call_text('ls')}\n{call_text('pwd')}{END}"
        world.upstream.reply = lambda prompt: (ids_of(text), "stop")
        world.upstream.versions = lambda n: [
            {"version": "7", "start": 0, "end": 2},
            {"version": "8", "start": 2, "end": n},
        ]
        sdk = world.sdk()
        answer = await sdk.chat.completions.create(
            model="any", messages=[USER], tools=[SHELL], temperature=0, seed=1, extra_body={"unknown": 1}
        )
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls" and message.content == "Look:"
        assert message.reasoning_content == "hm"
        assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls] == [
            ("c00000000", "shell", {"command": "ls"}),
            ("c00000001", "shell", {"command": "pwd"}),
        ]
        assert answer.usage.completion_tokens == len(ids_of(text)) and answer.usage.prompt_tokens == len(
            world.session.calls[0].prompt_ids
        )
        assert world.gateway.counters["ignored_params"] == 3
        assert world.session.events[0]["kind"] == "ignored" and sorted(world.session.events[0]["fields"]) == [
            "seed",
            "temperature",
            "unknown",
        ]

        stream = await sdk.chat.completions.create(
            model="any", messages=[USER], tools=[SHELL], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        calls = [c for chunk in chunks if chunk.choices for c in chunk.choices[0].delta.tool_calls or []]
        assert [(c.index, c.id) for c in calls] == [(0, "c00010000"), (1, "c00010001")]
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
        assert chunks[-1].usage.total_tokens == answer.usage.total_tokens

        assert [model.id for model in (await sdk.models.list()).data] == ["policy"] and (
            await sdk.models.retrieve("any")
        ).id == "any"
        sent = world.upstream.requests[0]
        params = sent["sampling_params"]
        assert (params["temperature"], params["top_p"], params["top_k"], params["logprobs"]) == (0.7, 1.0, -1, 0)
        assert "seed" not in params and sent["cache_salt"] == "salt"
        call, again = world.session.calls
        assert call.completion_ids == ids_of(text) and call.policy_versions == (7, 7, *[8] * (len(ids_of(text)) - 2))
        assert call.logprobs == tuple(-0.5 - i / 1000 for i in call.completion_ids)
        assert (again.parent, again.parent_part, again.rerendered) == (0, "prompt", False)

    run(scenario)


def test_tool_choice_and_parallel_calls_are_neutralised_and_counted():
    async def scenario(world):
        world.upstream.reply = lambda prompt: (ids_of(call_text("a") + call_text("b") + END), "stop")
        chat = world.sdk().chat.completions
        forced = await chat.create(
            model="m", messages=[USER], tools=[SHELL], tool_choice={"type": "function", "function": {"name": "shell"}}
        )
        assert len(forced.choices[0].message.tool_calls) == 2 and world.gateway.counters["forced_tool_choice"] == 1
        none = await chat.create(model="m", messages=[USER], tools=[SHELL], tool_choice="none")
        assert none.choices[0].message.tool_calls is None and none.choices[0].message.content == call_text(
            "a"
        ) + call_text("b")
        assert world.gateway.counters == {"forced_tool_choice": 1, "ignored_params": 1}
        one = await chat.create(model="m", messages=[USER], tools=[SHELL], parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls) == 2 and world.gateway.counters["ignored_params"] == 2
        assert (
            world.session.calls[0].prompt_ids == world.session.calls[1].prompt_ids == world.session.calls[2].prompt_ids
        )

    run(scenario)


def test_custom_tools_in_chat_completions():
    async def scenario(world):
        world.upstream.reply = lambda prompt: (ids_by_character(patch_text("*** Begin\n+x\n")) + ids_of(END), "stop")
        tool = {"type": "custom", "custom": {k: CUSTOM[k] for k in ("name", "description", "format")}}
        messages = [USER]
        for _ in range(2):
            answer = await world.sdk().chat.completions.create(model="m", messages=messages, tools=[tool])
            (call,) = answer.choices[0].message.tool_calls
            assert (call.type, call.custom.name, call.custom.input) == ("custom", "apply_patch", "*** Begin\n+x\n")
            messages = [
                *messages,
                answer.choices[0].message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "done"},
            ]
        assert continued(world.session) == [(None, None), (0, "completion")]
        assert "begin end" in tokenizer().decode(world.session.calls[0].prompt_ids)

    run(scenario)


def test_completions_continue_the_text():
    async def scenario(world):
        replies = iter(
            [
                (ids_by_character("one two"), "length"),
                (ids_by_character(" three") + ids_of(END), "stop"),
                (ids_of("four STOP" + END), "stop"),
                (ids_of("x"), "length"),
            ]
        )
        world.upstream.reply = lambda prompt: next(replies)
        sdk = world.sdk()
        first = await sdk.completions.create(model="m", prompt="count: ", max_tokens=7)
        assert (first.choices[0].text, first.choices[0].finish_reason) == ("one two", "length")
        assert world.upstream.requests[0]["sampling_params"]["max_tokens"] == 7
        text = "count: " + first.choices[0].text
        stream = await sdk.completions.create(
            model="m", prompt=[text], stream=True, stream_options={"include_usage": True}, echo=False
        )
        chunks = [chunk async for chunk in stream]
        assert (
            chunks[0].choices[0].text == " three"
            and chunks[-1].usage.completion_tokens == len(ids_by_character(" three")) + 1
        )
        text += " three" + END + "\nand then"
        last = await sdk.completions.create(model="m", prompt=text, stop=["STOP"])
        assert last.choices[0].text == "four "
        assert continued(world.session) == [(None, None), (0, "completion"), (1, "completion")]
        assert tokenizer().decode(world.session.calls[2].prompt_ids) == text
        await world.post({"prompt": "count: one  two"}, path="/completions")
        assert continued(world.session)[3] == (None, None) and world.gateway.counters["rerendered_roots"] == 1
        for prompt in (
            [],
            [[]],
            ["a", "b"],
            [1, "a"],
            [1, True],
            [1.0],
            [[1], [2]],
            [10**6],
            [-1],
            [2**70],
            "",
            None,
            {},
        ):
            status, answer = await world.post({"prompt": prompt}, path="/completions")
            assert status == 400 and answer["error"]["message"].startswith("prompt"), prompt
        assert len(world.session.calls) == 4 and world.session.close_reason is None

    run(scenario)


def test_completions_take_token_ids_as_they_are():
    async def scenario(world):
        replies = iter(
            [
                (ids_by_character(" two"), "length"),
                (ids_of(" 3" + END), "stop"),
                (ids_of("x"), "length"),
                (ids_of("y"), "length"),
            ]
        )
        world.upstream.reply = lambda prompt: next(replies)
        sdk, start = world.sdk(), ids_by_character("one")
        first = await sdk.completions.create(model="m", prompt=list(start))
        more = start + ids_by_character(" two") + ids_of(" and")
        await sdk.completions.create(model="m", prompt=[list(more)])
        assert [tuple(request["token_ids"]) for request in world.upstream.requests] == [start, more] and first.choices[
            0
        ].text == " two"
        # the same, said as text
        await sdk.completions.create(model="m", prompt=tokenizer().decode(more) + " 3" + END + "!")
        assert continued(world.session) == [(None, None), (0, "completion"), (1, "completion")]
        await sdk.completions.create(model="m", prompt=list(start))
        assert continued(world.session)[3] == (0, "prompt")

    run(scenario)


def test_completions_n():
    async def scenario(world):
        replies = iter("ab")
        world.upstream.reply = lambda prompt: (ids_of(next(replies) + END), "stop")
        answer = await world.sdk().completions.create(model="m", prompt="x", n=2)
        assert sorted(choice.text for choice in answer.choices) == ["a", "b"]
        assert continued(world.session) == [(None, None), (0, "prompt")]

    run(scenario)


def test_errors_have_the_openai_form():
    async def scenario(world):
        with pytest.raises(openai.AuthenticationError, match="send the key that the runner gave you"):
            await world.sdk(api_key="guessed").responses.create(model="m", input="go")
        with pytest.raises(openai.AuthenticationError):
            await world.sdk(api_key="guessed").models.list()
        with pytest.raises(openai.NotFoundError):
            await world.sdk().embeddings.create(model="m", input="go")
        with pytest.raises(openai.NotFoundError):
            await world.sdk().responses.retrieve("resp_1")
        with pytest.raises(openai.APIStatusError, match="larger than 20000 bytes") as large:
            await world.sdk().completions.create(model="m", prompt="x" * 30_000)
        assert large.value.status_code == 413
        async with world.http.put(world.url + "/responses") as response:
            assert response.status == 405 and "POST" in response.headers["Allow"]
            assert (await response.json())["error"]["type"] == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="maximum context length is 40 tokens") as closed:
            await world.sdk().responses.create(model="m", input="word " * 100)
        assert closed.value.code == "context_length_exceeded"

    run(scenario, config=GatewayConfig(max_body_bytes=20_000), limits=SessionLimits(max_total_tokens=40))


def test_dialects_share_a_session():
    """The same conversation through either endpoint is the same branch."""

    async def scenario(world):
        world.upstream.reply = lambda prompt: (
            ids_by_character("ok") + ids_of(TEXT_END) if world.session.calls else ids_of("hi" + END),
            "stop",
        )
        _, answer = await world.post({"messages": [USER]})
        history = [
            USER,
            {"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
            {"role": "user", "content": "more"},
        ]
        await asyncio.gather(world.post({"messages": history}), world.post({"input": history}, path="/responses"))
        assert continued(world.session)[0] == (None, None) and {
            parent for parent, _ in continued(world.session)[1:]
        } == {0, 1}
        assert world.session.calls[1].prompt_ids == world.session.calls[2].prompt_ids
        async with aiohttp.ClientSession() as http, http.get(world.url.removesuffix("/v1") + "/health") as response:
            assert response.status == 200

    run(scenario)
