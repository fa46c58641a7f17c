"""Whose doing it is that a chat template refuses a conversation: the model's or the client's.

The model's, where the template would take what the client says had the model said something else in its turns: a text,
one call, or as many calls as were answered.
"""

from collections.abc import Set
from itertools import takewhile

from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.rendering import Renderer, TemplateRefusal


def models_doing(renderer: Renderer, messages: list[Message], own: Set[int], tools: list[dict] | None) -> bool:
    """own: places of the turns that the model has sampled."""
    return bool(own) and any(_taken(renderer, _tamed(messages, own, most), tools) for most in (1, len(messages)))


def _tamed(messages: list[Message], own: Set[int], most: int) -> list[Message]:
    """The model's turns become a text each; where answers follow, the first `most` of its calls, and those answers."""
    out, place = [], 0
    while place < len(messages):
        message, place = messages[place], place + 1
        if place - 1 not in own:
            out.append(message)
            continue
        answers = list(takewhile(lambda later: later["role"] == "tool", messages[place:]))
        calls = [
            {**call, "function": {"name": call["function"]["name"], "arguments": {}}}
            for call in message.get("tool_calls", ())[: min(most, len(answers))]
        ]
        out.append({"role": "assistant", "content": "" if calls else "x"} | ({"tool_calls": calls} if calls else {}))
        if calls:
            out += answers[: len(calls)]
            place += len(answers)
    return out


def _taken(renderer: Renderer, messages: list[Message], tools: list[dict] | None) -> bool:
    try:
        renderer.render(messages, tools)
    except TemplateRefusal:
        return False
    return True
