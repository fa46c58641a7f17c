"""Canonical messages: one form for what clients write in many, and the hash chain over them."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coderepairrl.errors import GatewayError

Message = dict[str, Any]  # as a chat template takes it
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MAX_DEPTH = 100  # of nested JSON


class BadRequest(GatewayError):
    """The client's request can't be served: answered with HTTP 400."""


@dataclass(frozen=True, slots=True)
class Canonical:
    message: Message
    # equal for messages that mean the same: without ids, order of keys, an assistant's reasoning and outer white space
    digest: bytes


def canonical(message: Any) -> Canonical:
    """Raises BadRequest."""
    message = normalise(message)
    return Canonical(message, digest_of(message))


def chain(start: bytes, digests: Iterable[bytes]) -> list[bytes]:
    """After 0, 1 .. all messages. Two requests share link i when they start alike (the tools) and their first i
    messages agree."""
    links = [start]
    for digest in digests:
        links.append(next_link(links[-1], digest))
    return links


def next_link(link: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(link + digest, digest_size=16).digest()


def digest_of(message: Message) -> bytes:
    role, content = message["role"], message["content"]
    if role == "assistant":  # agents strip the model's text before they send it back
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        return digest_of_json((role, content.strip(), calls))
    return digest_of_json((role, content, message.get("name")))


def digest_of_json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def normalise(message: Any) -> Message:
    """Only what chat templates know: absent, null and empty content are "", parts are joined, arguments are JSON
    objects. Raises BadRequest."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in ROLES:
        raise BadRequest(f"each message must be an object with a role of {', '.join(ROLES)}")
    out: Message = {"role": ROLES[message["role"]], "content": text_of(message.get("content"))}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name):
            if not isinstance(message[name], str):
                raise BadRequest(f"{name} of a message must be a string")
            out[name] = message[name]
    if message.get("function_call"):  # the older form of one call, which has no id
        message = {
            **message,
            "tool_calls": [*(message.get("tool_calls") or ()), {"function": message["function_call"]}],
        }
    if message.get("tool_calls"):
        try:
            out["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise BadRequest(
                f"tool_calls of a message must be objects with a function that has a name: {error!r}"
            ) from error
    return out


def text_of(content: Any) -> str:
    """Of a string, null, or a list of parts that have a text. Raises BadRequest."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise BadRequest("the content of a message must be a string or a list of text parts")


def _tool_call(call: Any) -> dict:
    """A custom call, which has free text instead of arguments, is a function's call with that text as its `input`."""
    if call.get("type") == "custom":
        name, arguments = call["custom"]["name"], {"input": text_of(call["custom"].get("input"))}
    else:
        name, arguments = call["function"]["name"], _arguments(call["function"].get("arguments"))
    if not isinstance(name, str) or not name:
        raise BadRequest(f"the function of a tool call must have a name that is a string, not {name!r}")
    return {"id": str(call.get("id") or ""), "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(arguments: Any) -> Any:
    """The JSON object that the text holds, an empty one for nothing, white space or null; text that holds none stays as
    it is."""
    if not isinstance(arguments, str):
        return arguments if arguments is not None else {}
    if arguments.strip() in ("", "null"):
        return {}
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(parsed, dict) or too_deep(parsed):
        return arguments
    # escapes inside of the text: the body's reader can't see them
    return without_surrogates(parsed) if "\\ud" in arguments.lower() else parsed


def too_deep(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested so deep that some program behind us would give up on it."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return levels == 0 or any(too_deep(item, levels - 1) for item in value)


def without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value
