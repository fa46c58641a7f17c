"""POST /v1/completions: a text, or token ids, goes on. No chat template, no tools; an agent that appends to what it got
stays token-exact."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from coderepairrl.gateway.messages import BadRequest
from coderepairrl.gateway.request import Fields, Request, make_request
from coderepairrl.gateway.turn import Turn
from coderepairrl.gateway.writing import data_event, usage


def read(fields: Fields) -> Request:
    prompt = fields.get("prompt", (str, list))
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    ids = isinstance(prompt, list) and all(type(i) is int for i in prompt)
    if not prompt or not (ids or isinstance(prompt, str)):
        raise BadRequest(
            "prompt must be one text or one list of token ids, not empty: several prompts are several requests"
        )
    options = fields.get("stream_options", dict, {})
    return make_request(
        fields,
        text=tuple(prompt) if ids else prompt,
        n=fields.get("n", int, 1),
        stop=fields.get("stop", (str, list)),
        max_tokens=fields.get("max_tokens", int),
        include_usage=bool(options.get("include_usage")),
    )


def answer(request: Request, turns: Sequence[Turn]) -> dict[str, Any]:
    return {**_header(request, turns), "choices": _choices(turns), "usage": usage(turns)}


def events(request: Request, turns: Sequence[Turn]) -> Iterator[bytes]:
    header = _header(request, turns)
    for choice in _choices(turns):
        yield data_event({**header, "choices": [choice]})
    if request.include_usage:
        yield data_event({**header, "choices": [], "usage": usage(turns)})
    yield b"data: [DONE]\n\n"


def _choices(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [
        {"index": i, "text": turn.content, "logprobs": None, "finish_reason": turn.call.finish_reason}
        for i, turn in enumerate(turns)
    ]


def _header(request: Request, turns: Sequence[Turn]) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request.body_key[:12]}-{turns[0].call.index}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model,
    }
