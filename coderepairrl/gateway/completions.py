"""The OpenAI form of answers and errors: JSON bodies, and the same answer as server-sent events."""
import json
import time
from collections.abc import Iterator
from typing import Any

from coderepairrl.gateway.chat_request import ChatRequest
from coderepairrl.gateway.session import Turn


def finish_reason(turn: Turn) -> str:
    return "tool_calls" if turn.tool_calls else turn.call.finish_reason


def usage(turns: list[Turn]) -> dict[str, int]:
    prompt, completion = len(turns[0].call.prompt_ids), sum(len(turn.call.completion_ids) for turn in turns)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def body(request: ChatRequest, turns: list[Turn]) -> dict[str, Any]:
    choices = [{"index": i, "message": turn.message(), "logprobs": None, "finish_reason": finish_reason(turn)}
               for i, turn in enumerate(turns)]
    return {**_header(request, turns, "chat.completion"), "choices": choices, "usage": usage(turns)}


def events(request: ChatRequest, turns: list[Turn]) -> Iterator[bytes]:
    """Server-sent events. The answer is whole before the first is sent, so that an error can still be an HTTP status."""
    header = _header(request, turns, "chat.completion.chunk")

    def event(choices: list[dict], **more: Any) -> bytes:
        return b"data: " + json.dumps({**header, "choices": choices, **more}).encode() + b"\n\n"

    for i, turn in enumerate(turns):
        delta = turn.message()
        for number, call in enumerate(delta.get("tool_calls", ())):
            call["index"] = number
        yield event([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}])
        yield event([{"index": i, "delta": {}, "logprobs": None, "finish_reason": finish_reason(turn)}])
    if request.include_usage:
        yield event([], usage=usage(turns))
    yield b"data: [DONE]\n\n"


def error(message: str, status: int, code: str | None = None) -> dict[str, Any]:
    kind = "authentication_error" if status == 401 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _header(request: ChatRequest, turns: list[Turn], kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request.body_key[:12]}-{turns[0].call.index}", "object": kind, "created": int(time.time()),
            "model": request.model}
