"""A request as the session knows it, whichever dialect of the API it came in, and how a body's fields are read.

A dialect (chat_completions.py, completions.py, responses.py) is a module with

    read(fields) -> Request                 raises BadRequest naming what is wrong
    answer(request, turns) -> dict          the JSON body
    events(request, turns) -> Iterator      the same as server-sent events

A history comes again with every request. Its messages are known again by their bytes, and each is parsed once in a
session, so that a call costs what is new in it.
"""

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from coderepairrl.gateway.messages import BadRequest, Canonical, digest_of_json, too_deep, without_surrogates

T = TypeVar("T")
MAX_CHOICES = 64
MAX_STOPS = 64  # vLLM looks for each of them at every token, in the process that serves all sessions
KEPT_BYTES = 2**26  # of JSON whose reading a session remembers
_OBJECT, _LIST = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True)
class Tools:
    functions: tuple[dict, ...] = ()  # as a chat template takes them
    # names of those that take free text: shown to the model as functions of one string, `input`
    custom: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()  # kinds that only OpenAI's own servers can run
    digest: bytes = digest_of_json(())


@dataclass(frozen=True)
class Request:
    body_key: str  # equal for byte-equal bodies: an SDK's retry
    is_retry: bool  # the SDK says so: header x-stainless-retry-count > 0
    model: str
    messages: tuple[Canonical, ...]
    # /v1/completions: no messages but a prompt that is no conversation, or its token ids
    text: str | tuple[int, ...] | None
    new_bytes: int  # how much of the body this session has not seen before
    tools: Tools
    parse_tools: bool  # tools were offered, and tool_choice is not "none"
    n: int
    stop: tuple[str, ...]
    max_tokens: int | None
    stream: bool
    include_usage: bool
    left_out: tuple[str, ...]  # fields that nothing was made of: sampling parameters, what is unknown
    forced_tool_choice: bool  # neutralised: the model chooses

    def characters(self) -> int:
        """At least so many tokens times the longest one's characters: of token ids none, which are counted as they
        are."""
        return (len(self.text) if isinstance(self.text, str) else 0) + sum(
            len(entry.message["content"]) for entry in self.messages
        )


class Seen:
    """What a session's requests held, by its bytes, each with a number of its own."""

    def __init__(self):
        self.read_bytes = 0
        self._numbers = itertools.count()
        self._forget()

    def once(self, field: str, raw: bytes, read: Callable[[], T]) -> tuple[int, T]:
        """(number, read())"""
        known = self._items[field].get(raw)
        if known is None:
            known = next(self._numbers), read()
            if self._kept_bytes > KEPT_BYTES:
                self._forget()
            self._items[field][raw] = known
            self._kept_bytes += len(raw)
            self.read_bytes += len(raw)
        return known

    def merged(self, numbers: Sequence[int], make: Callable[[], T]) -> T:
        """What is made of several items together."""
        key = tuple(numbers)
        if key not in self._merged:
            self._merged[key] = make()
        return self._merged[key]

    def _forget(self) -> None:
        self._items: dict[str, dict[bytes, tuple[int, Any]]] = defaultdict(dict)
        self._merged: dict[tuple[int, ...], Any] = {}
        self._kept_bytes = 0


class Fields:
    """The top-level fields of a JSON object, each read when it is asked for."""

    def __init__(self, body: bytes, path: str, headers: Any, seen: Seen):
        """Raises BadRequest. headers: a mapping, for the SDK's word that it tries again."""
        try:
            self._raw = _split(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not a JSON object: {error}") from error
        self.path, self._seen, self._read_before = path, seen, seen.read_bytes
        self._asked: set[str] = set()
        self._numbers: dict[str, list[int]] = {}  # of what is known by its bytes
        self._left_out: list[str] = []
        self.is_retry = headers.get("x-stainless-retry-count", "0").strip() not in ("", "0")

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Null is as good as absent. Raises BadRequest when the value is of another type."""
        self._asked.add(name)
        value = read_json(bytes(self._raw[name]), name) if name in self._raw else None
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise BadRequest(f"{name} must be a JSON value of type {' or '.join(k.__name__ for k in kinds)}")
        return value

    def once(self, name: str, read: Callable[[Any], T]) -> T:
        """read(value), None for an absent one; the same bytes are read once in a session."""
        self._asked.add(name)
        return self._once(name, [self._raw.get(name, b"null")], read)[0][1]

    def each(self, name: str, read: Callable[[Any], T]) -> list[tuple[int, T]]:
        """(number, read(item)) of a list's items; equal bytes have equal numbers, and are read once in a session."""
        self._asked.add(name)
        try:
            items = _LIST.decode(self._raw.get(name, b"null"))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{name} must be a list: {error}") from error
        return self._once(name, items, read)

    def merged(self, numbers: Sequence[int], make: Callable[[], T]) -> T:
        return self._seen.merged(numbers, make)

    def leave_out(self, what: str) -> None:
        self._left_out.append(what)

    def left_out(self) -> tuple[str, ...]:
        """Fields that nobody asked for, and what was left out on purpose."""
        return (
            *self._left_out,
            *(name for name, raw in self._raw.items() if name not in self._asked and bytes(raw) != b"null"),
        )

    def new_bytes(self) -> int:
        """Of what is read once in a session: how much this body is the first to hold."""
        return self._seen.read_bytes - self._read_before

    def key(self) -> str:
        """Equal for equal bodies in a session. Histories are not hashed again: their items have numbers."""
        digest = hashlib.blake2b(self.path.encode(), digest_size=16)
        for name, raw in sorted(self._raw.items()):
            part = repr(self._numbers[name]).encode() if name in self._numbers else bytes(raw)
            digest.update(f"{len(name)} {name} {len(part)} ".encode() + part)
        return digest.hexdigest()

    def _once(self, name: str, items: Iterable[Any], read: Callable[[Any], T]) -> list[tuple[int, T]]:
        once = self._seen.once
        found = [once(name, raw, lambda: read(read_json(raw, name))) for raw in map(bytes, items)]
        self._numbers[name] = [number for number, _ in found]
        return found


def _split(body: bytes) -> dict[str, msgspec.Raw]:
    """Raises ValueError and RecursionError. A lone surrogate, which no tokeniser takes, becomes a question mark."""
    try:
        return _OBJECT.decode(body)
    except msgspec.DecodeError:
        if b"\\ud" not in body.lower():
            raise
        return _OBJECT.decode(json.dumps(without_surrogates(json.loads(body.decode()))))


def read_json(raw: bytes, name: str) -> Any:
    """Raises BadRequest."""
    try:
        value = json.loads(raw.decode())  # json.loads on bytes would let broken UTF-8 through
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{name} is not valid JSON: {error}") from error
    if too_deep(value):
        raise BadRequest(f"{name} is nested too deep")
    return value


def make_request(
    fields: Fields,
    messages: Iterable[Canonical] = (),
    text: str | tuple[int, ...] | None = None,
    tools: Tools = Tools(),
    *,
    n: int = 1,
    stop: Any = (),
    max_tokens: int | None = None,
    include_usage: bool = False,
) -> Request:
    """What all dialects share is read here. Raises BadRequest."""
    stop = (stop,) if isinstance(stop, str) else tuple(() if stop is None else stop)
    if not all(isinstance(s, str) and s for s in stop):
        raise BadRequest("stop must be a string or a list of strings, none of them empty")
    if len(stop) > MAX_STOPS:
        raise BadRequest(f"stop must hold {MAX_STOPS} strings at most")
    if not 1 <= n <= MAX_CHOICES or (max_tokens is not None and max_tokens < 1):
        raise BadRequest(f"n must lie in 1..{MAX_CHOICES}, and the limit of tokens be at least 1")
    choice = fields.get("tool_choice", (str, dict))
    model, stream = fields.get("model", str, ""), fields.get("stream", bool, False)
    for kind in tools.left_out:
        fields.leave_out(f"tools: {kind}")
    if choice == "none":
        fields.leave_out("tool_choice: none")  # the tools stay in the prompt; a call in the answer is plain text
    return Request(
        body_key=fields.key(),
        is_retry=fields.is_retry,
        model=model,
        messages=tuple(messages),
        text=text,
        new_bytes=fields.new_bytes() + len(text or ""),
        tools=tools,
        parse_tools=bool(tools.functions) and choice != "none",
        n=n,
        stop=stop,
        max_tokens=max_tokens,
        stream=stream,
        include_usage=include_usage,
        left_out=fields.left_out(),
        forced_tool_choice=choice not in (None, "auto", "none"),
    )


def read_tools(tools: Any) -> Tools:
    """Of both dialects: {"type": "function", "function": {...}} and {"type": "function", "name": ..., ...}. Raises
    BadRequest."""
    if not tools:
        return Tools()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRequest("tools must be a list of objects")
    functions, custom, left_out = [], set(), []
    for tool in tools:
        kind = tool.get("type", "function")
        inner = tool.get(kind) if isinstance(kind, str) and kind in tool else tool
        if kind not in ("function", "custom"):
            left_out.append(str(kind))
            continue
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise BadRequest("each of tools must have a name, in a function or in itself")
        if not isinstance(inner.get("description") or "", str) or not isinstance(inner.get("parameters") or {}, dict):
            raise BadRequest(f"tool {inner['name']!r}: the description must be a string and the parameters an object")
        if kind == "custom":
            custom.add(inner["name"])
            functions.append(_as_function(inner))
        elif inner is tool:
            functions.append(
                {
                    "type": "function",
                    "function": {k: tool[k] for k in ("name", "description", "parameters") if tool.get(k) is not None},
                }
            )
        else:
            functions.append(tool)
    return Tools(tuple(functions), frozenset(custom), tuple(left_out), digest_of_json(functions))


def _as_function(tool: dict) -> dict:
    """A tool that takes free text, which no open model's template knows."""
    form = tool.get("format") if isinstance(tool.get("format"), dict) else {}
    grammar = form.get("grammar") if isinstance(form.get("grammar"), dict) else form
    definition = (
        f"\n\nGrammar of the input:\n{grammar['definition']}" if isinstance(grammar.get("definition"), str) else ""
    )
    return {
        "type": "function",
        "function": {
            "name": tool["name"],
            "description": (tool.get("description") or "") + definition,
            "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
        },
    }
