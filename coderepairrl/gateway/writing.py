"""What the dialects' answers share. An answer is whole before the first byte is sent, so that an error can still be an
HTTP status."""

import json
from collections.abc import Sequence
from typing import Any

from coderepairrl.gateway.request import Request
from coderepairrl.gateway.tool_calls import ParsedCall
from coderepairrl.gateway.turn import Turn


def finish_reason(turn: Turn) -> str:
    return "tool_calls" if turn.tool_calls else turn.call.finish_reason


def usage(turns: Sequence[Turn]) -> dict[str, int]:
    count = lambda turn: turn.used or (len(turn.call.prompt_ids), len(turn.call.completion_ids))
    prompt, completion = count(turns[0])[0], sum(count(turn)[1] for turn in turns)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def custom_input(request: Request, call: ParsedCall) -> str | None:
    """The free text of a call to a custom tool. None for a function's call, and for one that is not what was asked for:
    it goes out as it was said, so that its history reads the same when it comes back."""
    if call.name not in request.tools.custom:
        return None
    arguments = json.loads(call.arguments)
    text = arguments.get("input")
    return text if len(arguments) == 1 and isinstance(text, str) else None


def data_event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def error(message: str, status: int, code: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 401:
        kind = "authentication_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
