"""The form of tool calls, about which chat templates are particular.

Mistral's takes ids of nine letters or digits: ours are of that form. What a template refuses is shown to it in other
forms that mean the same: a client's ids brought into ours, arguments as text (DeepSeek's).
"""

import hashlib
import json
import re
from collections.abc import Iterator

from coderepairrl.gateway.messages import Message

PLAIN = re.compile("[A-Za-z0-9]{9}")
_OURS = re.compile("c([0-9a-z]{4})([0-9a-z]{4})")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def call_id(turn: int, number: int) -> str:
    """Of a turn's call; the same in every run of the same conversation."""
    return "c" + _base36(turn, 4) + _base36(number, 4)


def turn_of(text: str) -> str:
    """Equal for the calls of one turn, empty for an id that is not ours."""
    ours = _OURS.fullmatch(text)
    return ours[1] if ours else ""


def forms(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages themselves, then in the other forms."""
    yield messages
    if any("tool_calls" in message or message["role"] == "tool" for message in messages):
        named = plain(messages)
        yield named
        yield [_with_text(message) for message in messages]
        yield [_with_text(message) for message in named]


def plain(messages: list[Message]) -> list[Message]:
    """With ids of nine letters or digits, which depend on nothing but the ids that there were. An answer without one is
    to the first call of the turn before it that is not answered yet."""
    out, names, waiting = [], {}, []
    for message in messages:
        if message.get("tool_calls"):
            ids = [_plain(call["id"] or str(place)) for place, call in enumerate(message["tool_calls"])]
            names |= {call["id"]: made for call, made in zip(message["tool_calls"], ids) if call["id"]}
            waiting = list(ids)
            calls = [{**call, "id": made} for call, made in zip(message["tool_calls"], ids)]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            given = message.get("tool_call_id", "")
            made = names.get(given) or _plain(given) if given else (waiting or [_plain("0")])[0]
            waiting = [other for other in waiting if other != made]
            message = {**message, "tool_call_id": made}
        out.append(message)
    return out


def _with_text(message: Message) -> Message:
    """Its calls' arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}


def _plain(text: str) -> str:
    if PLAIN.fullmatch(text):
        return text
    return _base36(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()), 9)


def _base36(number: int, digits: int) -> str:
    out = ""
    for _ in range(digits):
        number, digit = divmod(number, 36)
        out = _DIGITS[digit] + out
    return out
