"""Hermes tool calls in sampled text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them."""
import json
from dataclasses import dataclass

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ParsedCall:
    name: str
    arguments: str  # a JSON object as text, as the OpenAI API has it


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# strict=False: small models put raw line breaks into strings
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)


def parse_hermes(text: str) -> tuple[str, list[ParsedCall], int]:
    """(content, calls, count of malformed calls). A malformed call stays in the content, so the agent can see it.

    The JSON is read first and the closing tag looked for behind it: code in an argument may hold the tag itself. A last
    call without its closing tag counts when its JSON is whole: the end token may have come in its place.
    """
    if OPEN not in text:
        return text, [], 0
    pieces, calls, malformed, at = [], [], 0, 0
    while (start := text.find(OPEN, at)) >= 0:
        found = _call_at(text, start + len(OPEN))
        if found is None:
            malformed += 1
            pieces.append(text[at:start + len(OPEN)])
            at = start + len(OPEN)
            continue
        call, end = found
        pieces.append(text[at:start])
        calls.append(call)
        at = end
    pieces.append(text[at:])
    content = "".join(pieces)
    return content.strip() if calls else content, calls, malformed


def _call_at(text: str, start: int) -> tuple[ParsedCall, int] | None:
    """The call whose JSON starts after white space at `start`, and where its block ends."""
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        call, end = _DECODER.raw_decode(text, start)
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if isinstance(arguments, str):
            arguments = _DECODER.decode(arguments)
        name = call["name"] if isinstance(arguments, dict) else None
        if not isinstance(name, str) or not name:
            return None
        arguments = json.dumps(arguments, ensure_ascii=False)
        (name + arguments).encode()  # a lone surrogate can't be sent back by any client
    except (ValueError, KeyError, RecursionError):  # not a call: the model's doing, counted by the caller
        return None
    rest = text[end:]
    gap = len(rest) - len(rest.lstrip())
    if rest.startswith(CLOSE, gap):
        return ParsedCall(name, arguments), end + gap + len(CLOSE)
    return (ParsedCall(name, arguments), len(text)) if not rest.strip() else None
