"""Whose doing it is that a chat template refuses a conversation: the model's or the client's.

The model's, where the template would take the same messages of the client had the model said something else in its turns: a text, one call, or as
many calls as were answered.
"""
from collections.abc import Set

from coderepairrl.gateway.messages import Message
from coderepairrl.gateway.rendering import Renderer, TemplateRefusal


def models_doing(renderer: Renderer, messages: list[Message], own: Set[int], tools: list[dict] | None) -> bool:
    """own: places of the turns that the model has sampled."""
    return bool(own) and any(_taken(renderer, _tamed(messages, own, most), tools) for most in (1, len(messages)))


def _tamed(messages: list[Message], own: Set[int], most: int) -> list[Message]:
    """The model's turns become a text, or where answers follow, the first `most` of the calls that these are to."""
    out = []
    for place, message in enumerate(messages):
        if place in own:
            answered = next((i for i, later in enumerate(messages[place + 1:]) if later["role"] != "tool"), len(messages) - place - 1)
            calls = [{**call, "function": {"name": call["function"]["name"], "arguments": {}}} for call in message.get("tool_calls", ())][:min(most, answered)]
            message = {"role": "assistant", "content": "", "tool_calls": calls} if calls else {"role": "assistant", "content": "x"}
        out.append(message)
    return out


def _taken(renderer: Renderer, messages: list[Message], tools: list[dict] | None) -> bool:
    try:
        renderer.render(messages, tools)
    except TemplateRefusal:
        return False
    return True
