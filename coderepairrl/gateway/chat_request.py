"""A chat completion request as the gateway understands it, and the hash chain over its canonical messages."""
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from coderepairrl.errors import GatewayError
from coderepairrl.gateway.rendering import Message

# The gateway owns the sampling: a token's logprob must be that of the distribution the trainer assumes.
IGNORED = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
           "logit_bias", "seed", "logprobs", "top_logprobs", "response_format", "parallel_tool_calls", "functions",
           "function_call", "reasoning_effort", "verbosity", "prediction", "modalities", "audio", "web_search_options")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MAX_CHOICES = 64


class BadRequest(GatewayError):
    """The client's request can't be served: answered with HTTP 400."""


@dataclass(frozen=True)
class ChatRequest:
    body_key: str  # equal for byte-equal bodies: an SDK's retry
    is_retry: bool  # the SDK says so: header x-stainless-retry-count > 0
    model: str
    messages: tuple[Message, ...]  # normalised: what the chat template gets
    tools: tuple[dict, ...]
    parse_tools: bool  # tools were offered, and tool_choice is not "none"
    n: int
    stop: tuple[str, ...]
    max_tokens: int | None
    stream: bool
    include_usage: bool
    ignored_params: int  # sampling parameters of the client that were left out
    forced_tool_choice: bool  # neutralised: the model chooses


def parse_chat_request(body: bytes, retry_count: str | None) -> ChatRequest:
    """Raises BadRequest naming what is wrong."""
    try:
        data = json.loads(body.decode())  # json.loads on bytes would let broken UTF-8 through
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if b"\\ud" in body.lower():
        data = without_surrogates(data)  # no tokeniser takes a lone one
    if not isinstance(data, dict):
        raise BadRequest("the body must be a JSON object")
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message")
    tools = _of_type(data, "tools", list, []) if data.get("tools") else []
    if not all(isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in tools):
        raise BadRequest("each of tools must be an object with a function")
    stop = data.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
        raise BadRequest("stop must be a string or a list of strings")
    n = _of_type(data, "n", int, 1)
    max_tokens = _of_type(data, "max_completion_tokens", int, None) or _of_type(data, "max_tokens", int, None)
    if not 1 <= n <= MAX_CHOICES or (max_tokens is not None and max_tokens < 1):
        raise BadRequest(f"n must lie in 1..{MAX_CHOICES}, and max_tokens be at least 1")
    choice = data.get("tool_choice")
    options = _of_type(data, "stream_options", dict, {})
    return ChatRequest(
        body_key=hashlib.blake2b(body, digest_size=16).hexdigest(), is_retry=(retry_count or "0").strip() not in ("", "0"),
        model=str(data.get("model") or ""), messages=tuple(normalise(message) for message in messages), tools=tuple(tools),
        parse_tools=bool(tools) and choice != "none", n=n, stop=tuple(stop), max_tokens=max_tokens,
        stream=bool(data.get("stream")), include_usage=bool(options.get("include_usage")),
        ignored_params=sum(data.get(name) is not None for name in IGNORED),
        forced_tool_choice=choice not in (None, "auto", "none"))


def chain(request_tools: tuple[dict, ...], messages: tuple[Message, ...]) -> list[bytes]:
    """Digests after 0, 1 .. len(messages) messages. Two requests share digest i when tools and the first i messages agree."""
    digests = [hashlib.blake2b(_canonical_json(request_tools), digest_size=16).digest()]
    for message in messages:
        digests.append(next_digest(digests[-1], message))
    return digests


def next_digest(digest: bytes, message: Message) -> bytes:
    """Of the chain with one more message. Left out: ids, key order, the assistant's reasoning and outer white space."""
    role, content = message["role"], message["content"]
    if role == "assistant":  # agents strip the model's text before they send it back
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        canonical = (role, content.strip(), calls)
    else:
        canonical = (role, content, message.get("name"))
    return hashlib.blake2b(digest + _canonical_json(canonical), digest_size=16).digest()


def normalise(message: Any) -> Message:
    """Only what chat templates know: absent, null and empty content are "", parts are joined, arguments are JSON objects."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"each message must be an object with a role of {', '.join(ROLES)}")
    out: Message = {"role": ROLES[message["role"]], "content": _text(message.get("content"))}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name):
            if not isinstance(message[name], str):
                raise BadRequest(f"{name} of a message must be a string")
            out[name] = message[name]
    if message.get("tool_calls"):
        try:
            out["tool_calls"] = [{"id": str(call.get("id") or ""), "type": "function", "function": {
                "name": str(call["function"]["name"]), "arguments": _arguments(call["function"].get("arguments"))}}
                for call in message["tool_calls"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise BadRequest(f"tool_calls of a message must be objects with a function that has a name: {error!r}") from error
    return out


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise BadRequest("the content of a message must be a string or a list of text parts")


def _arguments(arguments: Any) -> Any:
    """The JSON object that the text holds; text that holds none stays as it is."""
    if not isinstance(arguments, str):
        return arguments if arguments is not None else {}
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _of_type(data: dict, name: str, kind: type, default: Any) -> Any:
    value = data.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRequest(f"{name} must be a JSON value of type {kind.__name__}")
    return value


def without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
