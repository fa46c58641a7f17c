"""The Responses dialect: what a stateless agent sends again is recognised as what it was told."""

import json

import pytest
from dialect_helpers import CUSTOM, FUNCTION, THOUGHT, continued, patch_text
from gateway_helpers import END, USER, call_text, ids_by_character, ids_of, run, tokenizer


async def respond(sdk, stream: bool, **body):
    """The final response, from its events or at once; the events are checked against it."""
    if not stream:
        return await sdk.responses.create(model="m", **body)
    async with sdk.responses.stream(model="m", **body) as events:
        seen = [event async for event in events]
    done = [event.item for event in seen if event.type == "response.output_item.done"]
    final = seen[-1].response
    assert [(item.type, item.id) for item in done] == [(item.type, item.id) for item in final.output]
    assert [event.sequence_number for event in seen] == sorted({event.sequence_number for event in seen}) and seen[
        0
    ].type == "response.created"
    return final


@pytest.mark.parametrize("stream", [False, True])
def test_responses_of_a_stateless_agent_are_one_branch(stream):
    """As codex does it: items come back without ids, reasoning without its text, outputs as text or as parts."""

    async def scenario(world):
        replies = iter([f"{THOUGHT}Look:\n{call_text('ls')}\n{patch_text('+x')}", call_text("cat"), f"{THOUGHT}done"])
        world.upstream.reply = lambda prompt: (ids_by_character(next(replies)) + ids_of(END), "stop")
        sdk = world.sdk()
        fixed = {
            "instructions": "You repair.",
            "tools": [FUNCTION, CUSTOM, {"type": "web_search"}],
            "tool_choice": "auto",
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "k",
            "parallel_tool_calls": False,
        }
        history = [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandbox"}]},
            {"role": "user", "content": "fix f"},
        ]
        first = await respond(sdk, stream, input=history, **fixed)
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "custom_tool_call"]
        assert first.status == "completed" and first.output_text == "Look:" and first.output[0].content[0].text == "hm"
        assert json.loads(first.output[2].arguments) == {"command": "ls"} and first.output[3].input == "+x"

        def back(items):
            dumps = [item.model_dump(exclude_none=True, exclude={"id", "status"}) for item in items]
            return [{**item, "content": None, "summary": []} if item["type"] == "reasoning" else item for item in dumps]

        history += [
            *back(first.output),
            {"type": "function_call_output", "call_id": "c00000000", "output": "a.py"},
            {
                "type": "custom_tool_call_output",
                "call_id": "c00000001",
                "output": [{"type": "input_text", "text": "ok"}],
            },
        ]
        second = await respond(sdk, stream, input=history, **fixed)
        history += [*back(second.output), {"type": "function_call_output", "call_id": "c00010000", "output": ""}]
        third = await respond(sdk, stream, input=history, **fixed)
        assert third.output_text == "done" and third.usage.input_tokens == len(world.session.calls[2].prompt_ids)
        assert continued(world.session) == [(None, None), (0, "completion"), (1, "completion")]
        prompt = tokenizer().decode(world.session.calls[0].prompt_ids)
        assert (
            prompt.count("<|im_start|>system") == 1
            and "You repair.\n\nsandbox" in prompt
            and '"name": "shell"' in prompt
        )
        assert "tools: web_search" in world.session.events[0]["fields"]

    run(scenario)


def test_answers_between_parallel_calls_are_the_same_turn():
    async def scenario(world):
        world.upstream.reply = lambda prompt: (ids_by_character(call_text("a") + call_text("b")) + ids_of(END), "stop")
        body = {"input": "go", "tools": [FUNCTION]}
        _, answer = await world.post(body, path="/responses")
        first, second = answer["output"]
        results = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in (first, second)
        ]
        await world.post(
            {**body, "input": [USER | {"content": "go"}, first, results[0], second, results[1]]}, path="/responses"
        )
        await world.post({**body, "input": [USER | {"content": "go"}, first, second, *results]}, path="/responses")
        assert continued(world.session) == [(None, None), (0, "completion"), (1, "prompt")]
        assert world.session.calls[1].prompt_ids == world.session.calls[2].prompt_ids

    run(scenario)


def test_calls_with_ids_of_the_clients_own_stay_turns_of_their_own():
    async def scenario(world):
        history, replies = [USER], iter("abc")
        world.upstream.reply = lambda prompt: (ids_by_character(call_text(next(replies))) + ids_of(END), "stop")
        for turn in ("call_x", "call_y", "call_z"):
            _, answer = await world.post({"input": history, "tools": [FUNCTION]}, path="/responses")
            history = [
                *history,
                {**answer["output"][0], "call_id": turn},
                {"type": "function_call_output", "call_id": turn, "output": "ok"},
            ]
        assert continued(world.session) == [(None, None), (0, "completion"), (1, "completion")]

    run(scenario)


def test_a_custom_call_that_is_malformed_comes_back_as_it_was_said():
    async def scenario(world):
        said = '<tool_call>{"name": "apply_patch", "arguments": {"patch": "+x", "more": 1}}</tool_call>'
        world.upstream.reply = lambda prompt: (ids_of(said + END), "stop")
        _, answer = await world.post({"input": "go", "tools": [CUSTOM]}, path="/responses")
        (call,) = answer["output"]
        assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"patch": "+x", "more": 1}
        history = [
            USER | {"content": "go"},
            call,
            {"type": "function_call_output", "call_id": call["call_id"], "output": "unsupported"},
        ]
        await world.post({"input": history, "tools": [CUSTOM]}, path="/responses")
        assert continued(world.session) == [(None, None), (0, "completion")]

    run(scenario)


def test_a_response_that_was_cut_says_so():
    async def scenario(world):
        world.upstream.reply = lambda prompt: (ids_of("a b c"), "length")
        for stream in (False, True):
            response = await respond(world.sdk(), stream, input="go", max_output_tokens=3)
            assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
        assert world.upstream.requests[0]["sampling_params"]["max_tokens"] == 3

    run(scenario)


def test_what_responses_can_not_do_is_said():
    async def scenario(world):
        for body, message in [
            ({"previous_response_id": "resp_1"}, "send the whole conversation"),
            ({"background": True}, "keeps no responses"),
            ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "send the item itself"),
            ({"input": [{"type": "function_call"}]}, "must have a name"),
            ({"input": 3}, "must be a list"),
            ({"input": []}, "not empty"),
            (
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
                "list of text parts",
            ),
        ]:
            status, answer = await world.post({"input": "go", **body}, path="/responses")
            assert status == 400 and message in answer["error"]["message"], body
        status, _ = await world.post(
            {"input": [{"role": "user", "content": "go"}, {"type": "web_search_call", "id": "x"}]}, path="/responses"
        )
        assert status == 200 and world.gateway.counters["ignored_params"] == 1

    run(scenario)
