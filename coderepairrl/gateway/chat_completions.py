"""POST /v1/chat/completions."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from coderepairrl.gateway.messages import BadRequest, canonical
from coderepairrl.gateway.request import Fields, Request, make_request, read_tools
from coderepairrl.gateway.turn import Turn
from coderepairrl.gateway.writing import custom_input, data_event, finish_reason, usage


def read(fields: Fields) -> Request:
    messages = [message for _, message in fields.each("messages", canonical)]
    if not messages:
        raise BadRequest("messages must be a list with at least one message")
    options = fields.get("stream_options", dict, {})
    newer, older = fields.get("max_completion_tokens", int), fields.get("max_tokens", int)
    return make_request(
        fields,
        messages,
        tools=fields.once("tools", read_tools),
        n=fields.get("n", int, 1),
        stop=fields.get("stop", (str, list)),
        max_tokens=older if newer is None else newer,
        include_usage=bool(options.get("include_usage")),
    )


def answer(request: Request, turns: Sequence[Turn]) -> dict[str, Any]:
    choices = [
        {"index": i, "message": _message(request, turn), "logprobs": None, "finish_reason": finish_reason(turn)}
        for i, turn in enumerate(turns)
    ]
    return {**_header(request, turns, "chat.completion"), "choices": choices, "usage": usage(turns)}


def events(request: Request, turns: Sequence[Turn]) -> Iterator[bytes]:
    header = _header(request, turns, "chat.completion.chunk")
    for i, turn in enumerate(turns):
        delta = _message(request, turn)
        for number, call in enumerate(delta.get("tool_calls", ())):
            call["index"] = number
        yield data_event({**header, "choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]})
        yield data_event(
            {**header, "choices": [{"index": i, "delta": {}, "logprobs": None, "finish_reason": finish_reason(turn)}]}
        )
    if request.include_usage:
        yield data_event({**header, "choices": [], "usage": usage(turns)})
    yield b"data: [DONE]\n\n"


def _message(request: Request, turn: Turn) -> dict[str, Any]:
    message = turn.message()
    for call, made in zip(message.get("tool_calls", ()), turn.tool_calls):
        text = custom_input(request, made)
        if text is not None:
            del call["function"]
            call.update(type="custom", custom={"name": made.name, "input": text})
    return message


def _header(request: Request, turns: Sequence[Turn], kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request.body_key[:12]}-{turns[0].call.index}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }
