"""Agents that do at random what agents do: append, drop turns, edit history, send the same body again, retry. Shared
by the gateway's tests of properties."""

import json
import random
from dataclasses import dataclass

from gateway_helpers import END, SHELL, TEXT_END, Upstream, call_text, ids_by_character, ids_of, read_request
from hypothesis import strategies as st

from coderepairrl.gateway import SamplingConfig, Session, SessionLimits, VLLMClient
from coderepairrl.gateway.rendering import TemplateRefusal

TEXTS = st.sampled_from(
    [
        "",
        " ",
        "ok",
        "größer 日本 🙂",
        "a\n\nb\n",
        "</think>",
        "<tool_call>",
        "{",
        "\u2402dummy turn\u2403",
        "<|im_end|>\n",
    ]
) | st.text(max_size=12).filter(lambda t: t.isprintable())
CALLS = st.sampled_from(
    [
        call_text("ls"),
        call_text("echo 日本 </tool_call>"),
        call_text("a") + call_text("b"),
        "<tool_call>{oops}</tool_call>",
        '<tool_call>{"name": "shell"}',
        '<tool_call>{"name": "shell", "arguments": [1]}</tool_call>',
    ]
)
ACTIONS = st.sampled_from(
    ["append", "append", "append", "append", "drop", "edit", "resend", "retry", "new", "other tools"]
)


def sampled_ids(reply):
    """(ids, finish_reason). Thoughts first; by character, so that tokenising the text again would show."""
    thinks, text, calls, end = reply
    body = ("<think>\nhm " + text + "\n</think>\n\n" if thinks else "") + text + "\n".join(calls)
    return ids_by_character(body.replace(END, "")) + ids_of(end) or ids_of("x"), "stop" if end else "length"


REPLIES = st.tuples(
    st.booleans(), TEXTS, st.lists(CALLS, max_size=2), st.sampled_from([END, END, END, TEXT_END, ""])
).map(sampled_ids)
STEPS = st.lists(st.tuples(ACTIONS, REPLIES, TEXTS), min_size=2, max_size=7)


class Agent:
    """Keeps a conversation as an OpenAI client would."""

    def __init__(self):
        self.messages = [{"role": "system", "content": "You repair."}, {"role": "user", "content": "fix f"}]
        self.tools = [SHELL]
        self.last_body = None

    def body(self) -> bytes:
        self.last_body = json.dumps({"model": "m", "messages": self.messages, "tools": self.tools}).encode()
        return self.last_body

    def answered(self, message, action, text):
        """The answer arrives, and the agent goes on from it."""
        message = {key: value for key, value in message.items() if key != "reasoning_content"}
        if action == "drop":  # a malformed turn, as mini-swe-agent does it
            self.messages = [*self.messages, {"role": "user", "content": "try again " + text}]
            return
        self.messages = [*self.messages, message]
        calls = message.get("tool_calls") or []
        self.messages += [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in calls]
        if not calls:
            self.messages.append({"role": "user", "content": text or "go on"})
        if action == "edit":
            place = random.Random(len(self.messages)).randrange(1, len(self.messages))
            edited = {**self.messages[place], "content": "edited " + text}
            self.messages = [*self.messages[:place], edited, *self.messages[place + 1 :]]
        if action == "new":
            self.messages = [self.messages[0], {"role": "user", "content": "another conversation " + text}]
        if action == "other tools":
            self.tools = [*self.tools, SHELL]


@dataclass
class Played:
    session: Session
    sampled: list[tuple]  # (prompt ids, sampled ids) as vLLM's side has them
    repeated: list[tuple[str, int]]  # (action, how many calls it added) of each body that was sent again
    refusal: str  # what the template said when it could not go on


async def play(renderer, steps) -> Played:
    """One random agent, without HTTP between it and the session; vLLM's side is HTTP. steps: (action, sampled (ids,
    finish_reason), text)."""
    upstream = Upstream()
    client = VLLMClient(await upstream.start(), wait_s=5)
    session = Session("key", SessionLimits(max_turns=100, max_total_tokens=100_000), SamplingConfig(), client, renderer)
    agent, played = Agent(), Played(session, upstream.answered, [], "")
    try:
        for action, reply, text in steps:
            upstream.reply = lambda prompt, reply=reply: reply
            if action in ("resend", "retry") and agent.last_body:
                before = len(session.calls)
                _, exchange = await session.answer(read_request(session, agent.last_body, action == "retry"))
                played.repeated.append((action, len(session.calls) - before))
            else:
                turns, exchange = await session.answer(read_request(session, agent.body()))
                agent.answered(turns[0].message(), action, text)
            exchange.delivered = True
    except TemplateRefusal as refusal:
        played.refusal = str(refusal)
    finally:
        await client.close()
        await upstream.stop()
    return played


def follows(call, calls) -> bool:
    """Its prompt continues the record of its parent, token for token; or it has none, and is the first call or marked
    as rendered again."""
    if call.parent is None:
        return call.rerendered == (call.index > 0)
    parent = calls[call.parent]
    kept = parent.prompt_ids + (parent.completion_ids if call.parent_part == "completion" else ())
    return call.parent < call.index and not call.rerendered and call.prompt_ids[: len(kept)] == kept
