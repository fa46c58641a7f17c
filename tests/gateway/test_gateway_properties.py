"""Random agents against the gateway: whatever they do, what was sampled stays token for token, each token once.

Agents append, drop turns, edit history, send the same body again, retry; the model samples text, thoughts, several and
malformed tool calls, in ids that tokenising its text would not give. Templates only append, rewrite history, or can't
be
continued at all.
"""

import asyncio
import json

import pytest
from gateway_helpers import (
    END,
    MOVING,
    PLAIN,
    QWEN3,
    SHELL,
    Upstream,
    call_text,
    ids_by_character,
    ids_of,
    read_request,
    tokenizer,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_agents import REPLIES, STEPS, TEXTS, Agent, follows, play, sampled_ids
from renderers import Qwen3Renderer, Qwen3RendererConfig

from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.gateway.messages import canonical

TEMPLATES = {
    "qwen3": (QWEN3, True),
    "qwen3 strips thoughts": (QWEN3, False),
    "plain": (PLAIN, True),
    "moving tools": (MOVING, True),
}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(steps=STEPS)
def test_every_prompt_continues_a_record_or_is_a_counted_root(name, steps):
    template, keep_reasoning = TEMPLATES[name]
    played = asyncio.run(play(Renderer(tokenizer(template), keep_reasoning=keep_reasoning), steps))
    calls = played.session.calls
    assert [(c.prompt_ids, c.completion_ids) for c in calls] == played.sampled  # each sample once, as it was sampled
    assert all(len(c.completion_ids) == len(c.logprobs) == len(c.policy_versions) for c in calls)
    assert all(follows(c, calls) for c in calls)
    assert played.session.counters["rerendered_roots"] == sum(c.rerendered for c in calls)
    # a retry is answered from the record
    assert all(added == (action == "resend") for action, added in played.repeated)
    # MOVING takes only turns that alternate
    assert not played.refusal or template == MOVING and "alternate" in played.refusal


@settings(max_examples=80, deadline=None, derandomize=True)
@given(replies=st.lists(REPLIES, min_size=2, max_size=5), text=TEXTS)
def test_an_agent_that_only_appends_gives_one_branch(replies, text):
    """Also with thoughts that the template would strip, malformed calls and turns that were cut."""
    text = text.replace("\u2402", "")
    played = asyncio.run(play(Renderer(tokenizer()), [("append", reply, text) for reply in replies]))
    calls = played.session.calls
    assert [(c.prompt_ids, c.completion_ids) for c in calls] == played.sampled and all(follows(c, calls) for c in calls)
    assert [(c.parent, c.parent_part) for c in calls] == [
        (None, None),
        *((i, "completion") for i in range(len(replies) - 1)),
    ]


def test_a_template_that_strips_thoughts_is_followed_when_asked():
    thinks = sampled_ids((True, "ok", [], END))
    kept, stripped = (
        asyncio.run(play(Renderer(tokenizer(), keep_reasoning=keep), [("append", thinks, "go on")] * 3)).session
        for keep in (True, False)
    )
    assert [c.rerendered for c in kept.calls] == [False, False, False]
    assert [c.rerendered for c in stripped.calls] == [False, True, True]
    assert "hm" in tokenizer().decode(kept.calls[2].prompt_ids) and "hm" not in tokenizer().decode(
        stripped.calls[2].prompt_ids
    )
    # tool results don't end the model's turn: the template keeps the thoughts, and so there is nothing to render again
    calls = sampled_ids((True, "ok", [call_text("ls")], END))
    in_cycle = asyncio.run(play(Renderer(tokenizer(), keep_reasoning=False), [("append", calls, "a.py")] * 3)).session
    assert not any(c.rerendered for c in in_cycle.calls)


def test_dropped_and_edited_turns_fork():
    calls = sampled_ids((False, "", [call_text("ls")], END))
    dropped = asyncio.run(
        play(Renderer(tokenizer()), [("append", calls, "a.py"), ("drop", calls, ""), ("append", calls, "b.py")])
    ).session
    assert [(c.parent, c.parent_part) for c in dropped.calls] == [(None, None), (0, "completion"), (0, "completion")]
    assert "try again" in tokenizer().decode(dropped.calls[2].prompt_ids)


MESSAGES = st.lists(
    st.one_of(
        st.builds(lambda t: {"role": "user", "content": t}, TEXTS),
        st.builds(lambda t: {"role": "system", "content": t}, TEXTS),
        st.builds(lambda t: {"role": "tool", "tool_call_id": "c00000000", "content": t}, TEXTS),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(new=MESSAGES, end=st.sampled_from([END, ""]), thinking=st.booleans(), tools=st.sampled_from([None, [SHELL]]))
def test_extend_agrees_with_the_renderers_package(new, end, thinking, tools):
    """Its hand-written Qwen3 path is the independent witness of the generic splice."""
    if any("\u2402" in message["content"] for message in new):
        return
    kwargs = {} if thinking else {"enable_thinking": False}
    ours = Renderer(tokenizer(), kwargs)
    theirs = Qwen3Renderer(tokenizer(), Qwen3RendererConfig(enable_thinking=thinking, thinking_retention="all"))
    calls = [{"id": "c00000000", "type": "function", "function": {"name": "shell", "arguments": {"command": "ls"}}}]
    past = [{"role": "user", "content": "fix"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    prompt, sampled = ours.render(past[:1], tools), ids_by_character("hm" + call_text("ls")) + ids_of(end)
    extended = ours.extend(prompt, sampled, "stop" if end else "length", past, new, tools)
    assert prompt == tuple(theirs.render_ids(past[:1], tools=tools, add_generation_prompt=True))
    bridged = theirs.bridge_to_next_turn(list(prompt), list(sampled), new, tools=tools).token_ids
    assert tokenizer().decode(extended) == tokenizer().decode(bridged)
    if not any("<|im_end|>" in message["content"] for message in new):
        assert extended == tuple(bridged)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=60), ids=st.lists(st.integers(0, 400), max_size=40), tools=st.booleans())
def test_parse_takes_anything_and_loses_nothing(text, ids, tools):
    renderer = Renderer(tokenizer())
    tools = [SHELL] if tools else []
    content, reasoning, calls, _ = renderer.parse(tuple(ids), tools)
    json.dumps([content, reasoning, [call.arguments for call in calls]]).encode()
    if "<think>" not in text and "<tool_call>" not in text:
        assert renderer.parse(ids_by_character(text) + ids_of(END), tools)[:2] == (text, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arguments=st.dictionaries(st.text(max_size=4), JSON, max_size=3), content=st.text(max_size=8))
def test_the_same_turn_has_one_digest_however_a_client_writes_it(arguments, content):
    def digest(content, arguments, **extra):
        calls = [{"id": extra.get("id", "a"), "function": {"name": "f", "arguments": arguments}}]
        return canonical({"role": "assistant", "content": content, "tool_calls": calls, **extra}).digest

    backwards = dict(reversed(arguments.items()))
    written = {
        digest(content, json.dumps(arguments)),
        digest(content + "\n", json.dumps(backwards, indent=2)),
        digest([{"type": "text", "text": content}], arguments, id="b", refusal=None, provider_specific_fields={}),
    }
    assert len(written) == 1
    assert digest(content + "!", arguments) not in written and digest(content, {**arguments, "more": 1}) not in written


def test_many_sessions_at_once_stay_apart():
    async def main():
        upstream = Upstream(lambda prompt: (ids_by_character(call_text(f"cat {len(prompt)}")) + ids_of(END), "stop"))
        client = VLLMClient(await upstream.start(), wait_s=5)
        gateway = Gateway(GatewayConfig(), [client], Renderer(tokenizer()))
        await gateway.start()
        sessions = [gateway.open_session(SessionLimits(), SamplingConfig()) for _ in range(32)]

        async def episode(session, number):
            agent = Agent()
            agent.messages[1]["content"] += f" {number}"
            for _ in range(4):
                turns, _ = await session.answer(read_request(session, agent.body()))
                agent.answered(turns[0].message(), "append", str(number))

        await asyncio.gather(*(episode(session, i) for i, session in enumerate(sessions)))
        assert sorted(upstream.answered) == sorted((c.prompt_ids, c.completion_ids) for s in sessions for c in s.calls)
        assert all([c.parent for c in s.calls] == [None, 0, 1, 2] for s in sessions) and not gateway.counters
        await gateway.stop()
        await client.close()
        await upstream.stop()

    asyncio.run(main())
