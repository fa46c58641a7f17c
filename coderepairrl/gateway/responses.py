"""POST /v1/responses: its items become the messages of a conversation, and a turn's parts become items.

Nothing is stored between requests: `input` is the whole conversation, as codex and other stateless clients send it.

    instructions, and developer messages at the start     one system message, which is all that many templates take
    reasoning, message, function_call, custom_tool_call   one assistant's turn, until something comes that a new one
                                                          begins with
    function_call_output, custom_tool_call_output         a tool's message
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from coderepairrl.gateway import call_forms
from coderepairrl.gateway.messages import BadRequest, Canonical, canonical, text_of
from coderepairrl.gateway.request import Fields, Request, make_request, read_tools
from coderepairrl.gateway.turn import Turn
from coderepairrl.gateway.writing import custom_input, usage

Part = tuple[int | None, dict]  # an item's number, None for what is no item, and what it gives to a message
STATEFUL = ("previous_response_id", "conversation", "background", "prompt")


def read(fields: Fields) -> Request:
    for name in STATEFUL:
        if fields.get(name, (str, dict, bool)):
            raise BadRequest(f"{name}: the gateway keeps no responses: send the whole conversation as input")
    parts = []
    if fields.get("instructions", str):
        parts.append((None, {"role": "system", "content": fields.get("instructions", str)}))
    for number, part in _items(fields):
        if "left_out" in part:
            fields.leave_out(f"input: {part['left_out']}")
        else:
            parts.append((number, part))
    if all(part["role"] == "system" for _, part in parts):
        raise BadRequest("input must be a text that is not empty or a list of items with at least one message")
    messages = [_merge(fields, group) for group in _groups(parts)]
    return make_request(
        fields, messages, tools=fields.once("tools", read_tools), max_tokens=fields.get("max_output_tokens", int)
    )


def answer(request: Request, turns: Sequence[Turn]) -> dict[str, Any]:
    (turn,) = turns
    tokens = usage(turns)
    cut = turn.call.finish_reason == "length"
    return {
        "id": f"resp_{request.body_key[:12]}_{turn.call.index}",
        "object": "response",
        "created_at": int(time.time()),
        "model": request.model,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "output": _output(request, turn),
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": None,
        "top_p": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
        "usage": {
            "input_tokens": tokens["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens["total_tokens"],
        },
    }


def events(request: Request, turns: Sequence[Turn]) -> Iterator[bytes]:
    whole = answer(request, turns)
    begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    steps = [("response.created", {"response": begun}), ("response.in_progress", {"response": begun})]
    for index, item in enumerate(whole["output"]):
        steps += [(kind, {"output_index": index, **data}) for kind, data in _item_events(item)]
    steps.append((f"response.{whole['status']}", {"response": whole}))
    for number, (kind, data) in enumerate(steps):
        yield f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **data})}\n\n".encode()


def _items(fields: Fields) -> list[Part]:
    try:
        text = fields.get("input", str)
    except BadRequest:
        return fields.each("input", _read_item)
    return [(None, {"role": "user", "content": text})] if text else []


def _read_item(item: Any) -> dict:
    if not isinstance(item, dict):
        raise BadRequest("each item of input must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        return canonical({"role": item.get("role"), "content": item.get("content")}).message
    if kind == "reasoning":
        return {"role": "assistant", "reasoning_content": text_of(item.get("content"))}
    if kind in ("function_call", "custom_tool_call"):
        inner = {"name": item.get("name"), "arguments": item.get("arguments"), "input": item.get("input")}
        call = {
            "id": item.get("call_id"),
            "type": "custom" if kind == "custom_tool_call" else "function",
            "function": inner,
            "custom": inner,
        }
        if not isinstance(item.get("name"), str):
            raise BadRequest(f"a {kind} must have a name")
        return {
            "role": "assistant",
            "tool_calls": canonical({"role": "assistant", "tool_calls": [call]}).message["tool_calls"],
        }
    if kind in ("function_call_output", "custom_tool_call_output"):
        return canonical({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}).message
    if kind == "item_reference":
        raise BadRequest("item_reference: the gateway keeps no items: send the item itself")
    return {"left_out": str(kind)}


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts of each message, in order."""
    groups: list[list[Part]] = []
    turn: list[Part] | None = None  # the assistant's turn that may still go on
    for part in parts:
        role = part[1]["role"]
        if role == "assistant" and turn and _goes_on(turn, part[1], last=turn is groups[-1]):
            turn.append(part)
            continue
        if role == "system" and all(group[0][1]["role"] == "system" for group in groups) and groups:
            groups[0].append(part)
            continue
        groups.append([part])
        if role != "tool":
            turn = groups[-1] if role == "assistant" else None
    return groups


def _goes_on(turn: Sequence[Part], part: dict, last: bool) -> bool:
    """Turns are sampled as reasoning, text, calls. Clients may put the answer to each call behind it: the calls' ids,
    which are ours, tell the turn."""
    calls = [call for _, piece in turn for call in piece.get("tool_calls", ())]
    if "tool_calls" in part:
        return (
            last
            or bool(calls)
            and call_forms.turn_of(part["tool_calls"][0]["id"]) == call_forms.turn_of(calls[0]["id"]) != ""
        )
    return last and not calls and "content" in part and not any("content" in piece for _, piece in turn)


def _merge(fields: Fields, group: Sequence[Part]) -> Canonical:
    def make() -> Canonical:
        pieces = [piece for _, piece in group]
        message = {
            "role": pieces[0]["role"],
            "content": "\n\n".join(piece["content"] for piece in pieces if piece.get("content")),
        }
        calls = [call for piece in pieces for call in piece.get("tool_calls", ())]
        reasoning = "\n".join(piece["reasoning_content"] for piece in pieces if piece.get("reasoning_content"))
        return canonical(
            message
            | ({"tool_calls": calls} if calls else {})
            | ({"reasoning_content": reasoning} if reasoning else {})
            | {name: pieces[0][name] for name in ("tool_call_id",) if name in pieces[0]}
        )

    numbers = [number for number, _ in group]
    return make() if None in numbers else fields.merged(numbers, make)


def _output(request: Request, turn: Turn) -> list[dict[str, Any]]:
    """Items with ids that are the same in every run of the same conversation."""
    number, items = turn.call.index, []
    if turn.reasoning:
        items.append(
            {
                "type": "reasoning",
                "id": f"rs_{number}",
                "summary": [],
                "status": "completed",
                "encrypted_content": None,
                "content": [{"type": "reasoning_text", "text": turn.reasoning}],
            }
        )
    if turn.content or not turn.tool_calls:
        items.append(
            {
                "type": "message",
                "id": f"msg_{number}",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": turn.content, "annotations": [], "logprobs": []}],
            }
        )
    for i, call in enumerate(turn.tool_calls):
        item = {"id": f"fc_{number}_{i}", "call_id": turn.call_id(i), "name": call.name, "status": "completed"}
        text = custom_input(request, call)
        items.append(
            {"type": "function_call", **item, "arguments": call.arguments}
            if text is None
            else {"type": "custom_tool_call", **item, "input": text}
        )
    return items


def _item_events(item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One delta for each text: it is whole already."""
    place = {"item_id": item["id"]}
    if item["type"] == "message":
        part = item["content"][0]
        yield "response.output_item.added", {"item": {**item, "status": "in_progress", "content": []}}
        yield "response.content_part.added", {**place, "content_index": 0, "part": {**part, "text": ""}}
        yield "response.output_text.delta", {**place, "content_index": 0, "delta": part["text"], "logprobs": []}
        yield "response.output_text.done", {**place, "content_index": 0, "text": part["text"], "logprobs": []}
        yield "response.content_part.done", {**place, "content_index": 0, "part": part}
    elif item["type"] == "reasoning":
        text = item["content"][0]["text"]
        yield "response.output_item.added", {"item": {**item, "status": "in_progress", "content": []}}
        yield "response.reasoning_text.delta", {**place, "content_index": 0, "delta": text}
        yield "response.reasoning_text.done", {**place, "content_index": 0, "text": text}
    else:
        name, stem = (
            ("arguments", "function_call_arguments")
            if item["type"] == "function_call"
            else ("input", "custom_tool_call_input")
        )
        yield "response.output_item.added", {"item": {**item, "status": "in_progress", name: ""}}
        yield f"response.{stem}.delta", {**place, "delta": item[name]}
        yield (
            f"response.{stem}.done",
            {**place, name: item[name]} | ({"name": item["name"]} if name == "arguments" else {}),
        )
    yield "response.output_item.done", {"item": item}
