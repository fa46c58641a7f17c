"""Tool calls in sampled text: Hermes' `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, or as one of vLLM's
tool parsers reads them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coderepairrl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ParsedCall:
    name: str
    arguments: str  # a JSON object as text, as the OpenAI API has it


# (text, tools) -> (content, calls, count of malformed calls)
Parser = Callable[[str, Sequence[dict]], tuple[str, list[ParsedCall], int]]


def tool_call_parser(name: str, tokenizer: "PreTrainedTokenizerBase") -> Parser:
    """Raises ConfigError. vLLM's parsers don't count what is malformed."""
    if name == "hermes":
        return lambda text, tools: parse_hermes(text)
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # seconds, only for who needs it
    from vllm.tool_parsers import ToolParserManager

    try:
        parser_class = ToolParserManager.get_tool_parser(name)
        parser_class(tokenizer)
    except KeyError:
        known = ", ".join(sorted({"hermes", *ToolParserManager.lazy_parsers}))
        raise ConfigError(f"tool_calls {name!r} is unknown: one of {known}") from None
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"tool_calls {name!r} is not for this tokenizer: {error}") from error

    def parse(text: str, tools: Sequence[dict]) -> tuple[str, list[ParsedCall], int]:
        try:
            request = ChatCompletionRequest(model="", messages=[], tools=list(tools))
            found = parser_class(tokenizer, request.tools).extract_tool_calls(text, request)
        except (
            Exception
        ):  # some parsers raise whatever on a malformed call: the model's doing, and what it sampled must be recorded
            return text, [], 1
        calls = [checked_call(call.function.name, call.function.arguments) for call in found.tool_calls]
        if not found.tools_called or None in calls:
            return text, [], int(None in calls)
        return found.content or "", calls, 0

    return parse


def checked_call(name: object, arguments: object) -> ParsedCall | None:
    """None for what no client could read: a name that is none, arguments that are no JSON object."""
    try:
        if isinstance(arguments, str):
            arguments = _DECODER.decode(arguments)
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        arguments = json.dumps(arguments, ensure_ascii=False, allow_nan=False)  # 1e999 is read as infinite
        (name + arguments).encode()  # a lone surrogate can't be sent back by any client
    except (ValueError, RecursionError):  # the model's doing, counted by the caller
        return None
    return ParsedCall(name, arguments)


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
            pieces.append(text[at : start + len(OPEN)])
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
        said, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):  # no JSON
        return None
    call = checked_call(said.get("name"), said.get("arguments", {})) if isinstance(said, dict) else None
    if call is None:
        return None
    rest = text[end:]
    gap = len(rest) - len(rest.lstrip())
    if rest.startswith(CLOSE, gap):
        return call, end + gap + len(CLOSE)
    return (call, len(text)) if not rest.strip() else None
