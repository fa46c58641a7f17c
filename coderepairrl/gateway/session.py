"""One agent's session: its limits, and the tree of its calls.

Which recorded call a request continues is found by a hash chain over canonical messages (tools included), then by token
prefix. The longest recorded prefix wins:

    the conversation ends, or goes on, after a turn that this session sampled   -> that call's prompt + completion,
                                                                                extended
    its prompt was asked before (n > 1, or the same body as a new request)      -> parent_part "prompt"
    a turn was dropped or edited                                                -> a fork at the last turn that still
                                                                                agrees
    no turn agrees, or the template can't only append                           -> rendered as a new root, counted

A repeated body is the SDK's retry, and gets the same answer, while the first is in flight, while no answer to it was
delivered, or when the SDK says so (x-stainless-retry-count). Sent again after its answer was delivered it is a new
sample.

A text that is no conversation (/v1/completions) continues the longest recorded prompt + completion that it starts with,
as text.
"""

import asyncio
import hashlib
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from coderepairrl.errors import EngineError, GatewayError
from coderepairrl.gateway import blame, call_forms
from coderepairrl.gateway.messages import BadRequest, Canonical, Message, canonical, chain, next_link
from coderepairrl.gateway.rendering import Renderer, TemplateRefusal
from coderepairrl.gateway.request import Request, Seen
from coderepairrl.gateway.session_limits import SamplingConfig, SessionLimits
from coderepairrl.gateway.shown import hidden
from coderepairrl.gateway.tool_calls import ParsedCall
from coderepairrl.gateway.vllm_client import Completion, PromptTooLong, VLLMClient
from coderepairrl.types import Call, Outcome

LEFT_OUT_NAMES = 100  # of ignored fields: a session notes no more, whatever its client makes up
LONG_TEXT_BYTES = 100_000  # of new text: tokenised in a thread, so that other sessions need not wait


class SessionClosed(GatewayError):
    """The session takes no more requests; the message is the one at which agents stop at once."""


@dataclass(frozen=True)
class Turn:
    """What the client gets for one call."""

    call: Call
    content: str
    reasoning: str | None
    tool_calls: tuple[ParsedCall, ...]

    def message(self) -> Message:
        """As the OpenAI API has it; the ids of tool calls are the same in every run of the same conversation."""
        message: Message = {"role": "assistant", "content": self.content or (None if self.tool_calls else "")}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": self.call_id(i),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(self.tool_calls)
            ]
        return message

    def call_id(self, number: int) -> str:
        """Of a tool call."""
        return call_forms.call_id(self.call.index, number)


@dataclass
class Exchange:
    """A request body and its answer: the turns of its n choices."""

    task: asyncio.Task[list[Turn]]
    delivered: bool = False  # the whole answer was written to a connection that was open

    def answers(self, request: Request) -> bool:
        """Whether the same body asks for the same answer again, not for another one."""
        return not self.task.done() or (_succeeded(self.task) and (request.is_retry or not self.delivered))


@dataclass(frozen=True)
class _Prompt:
    ids: tuple[int, ...]
    parent: int | None
    links: list[bytes]  # the request's chain; of a text, one
    why_root: str  # empty for a continuation


class Session:
    """Made by Gateway.open_session inside the event loop. `calls` and `events` grow; `close_reason` is set once."""

    def __init__(
        self,
        key: str,
        limits: SessionLimits,
        sampling: SamplingConfig,
        client: VLLMClient,
        renderer: Renderer,
        cache_salt: str | None = None,
        count: Callable[[str, int], None] = lambda name, number: None,
    ):
        self.key, self.limits, self.sampling, self.cache_salt = key, limits, sampling, cache_salt
        self.base_url, self.socket_path = "", None  # where its agent finds the gateway, which says so
        self.on_close: Callable[[], None] = lambda: None  # called once, with the first reason
        self.calls: list[Call] = []
        self.events: list[dict] = []
        self.counters: Counter[str] = Counter()
        self.close_reason: Outcome | None = None
        self.close_detail = ""
        self.seen = Seen()
        self.client, self._renderer, self._count_in_gateway = client, renderer, count
        self._opened, self._down_at_open_s = time.monotonic(), client.down_s()
        self._id = secrets.token_hex(6)  # in vLLM's request ids
        self._issued = 0
        self._pending = 0  # samples in flight: they have their turns already
        self._turns: list[Turn] = []  # one a call
        self._after_turn: dict[bytes, list[int]] = {}  # link that ends with a sampled turn -> calls
        self._asked: dict[bytes, list[int]] = {}  # last link of a prompt -> calls
        self._texts: dict[int, str] = {}  # call -> prompt + completion, of those that are no conversation
        self._left_out: set[str] = set()
        self._last: tuple[tuple[Canonical, ...], list[bytes]] = (), [b""]
        self._exchanges: dict[str, Exchange] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._watch_deadline()

    async def answer(self, request: Request) -> tuple[list[Turn], Exchange]:
        """The turns for the request's choices. Raises SessionClosed, and TemplateRefusal for what can't be rendered.

        The sampling goes on when the caller is cancelled: a client that hung up gets it with its retry.
        """
        self.refuse_if_closed()
        exchange = self._exchanges.get(request.body_key)
        if exchange and exchange.answers(request):
            self._count("joined_retries")
        else:
            self._take_turns(request.n)
            self._note_what_is_left_out(request)
            exchange = Exchange(asyncio.create_task(self._serve(request)))
            self._exchanges[request.body_key] = exchange
            exchange.task.add_done_callback(partial(self._settle, request))
        await asyncio.wait({exchange.task})
        if exchange.task.cancelled() or isinstance(exchange.task.exception(), EngineError):
            self.refuse_if_closed()
        return exchange.task.result(), exchange

    def close(self, reason: Outcome, detail: str = "", cancel: bool = False) -> None:
        """The first reason stays. cancel: samples in flight are given up, they are in no record."""
        if self.close_reason is None:
            self.close_reason, self.close_detail = reason, detail
            self._event("closed", reason=str(reason), detail=detail)
            self.on_close()
        if self._timer and (cancel or not self._pending):
            self._timer.cancel()
        if cancel:
            for exchange in self._exchanges.values():
                if exchange.task.cancel():
                    self._event("cancelled")

    async def drain(self) -> None:
        """Waits until nothing is in flight; after close(cancel=True) that is at once."""
        tasks = {exchange.task for exchange in self._exchanges.values() if not exchange.task.done()}
        if tasks:
            await asyncio.wait(tasks)

    async def calls_begun(self) -> int:
        """With those in flight."""
        return self.begun

    @property
    def begun(self) -> int:
        return len(self.calls) + self._pending

    def clock_s(self) -> float:
        """The agent's time: since the session was opened, less the time in which vLLM was down."""
        return time.monotonic() - self._opened - (self.client.down_s() - self._down_at_open_s)

    def _watch_deadline(self) -> None:
        if self.limits.deadline_s is None:
            return
        left_s = self.limits.deadline_s - self.clock_s()
        if left_s <= 0:
            self.close(Outcome.TIME_LIMIT, f"{self.limits.deadline_s} s are over", cancel=True)
        else:  # looked at again: the clock may have stopped in between
            self._timer = asyncio.get_running_loop().call_later(max(left_s, 0.1), self._watch_deadline)

    def refuse_if_closed(self) -> None:
        if self.close_reason is not None:
            raise SessionClosed(
                f"This model's maximum context length is {self.limits.max_total_tokens} tokens. "
                f"The session is closed ({self.close_reason}): start no further request."
            )

    def _take_turns(self, number: int) -> None:
        """Closes the session at the limit."""
        if self.begun + number > self.limits.max_turns:
            self.close(Outcome.TURN_LIMIT, f"{self.limits.max_turns} calls were made")
            self.refuse_if_closed()
        self._pending += number

    def _settle(self, request: Request, task: asyncio.Task) -> None:
        exchange = self._exchanges.get(request.body_key)
        # asked again it is another try, which may have begun
        if not _succeeded(task) and exchange and exchange.task is task:
            del self._exchanges[request.body_key]

    async def _serve(self, request: Request) -> list[Turn]:
        try:
            return await self._serve_in_turn(request)
        finally:
            # in the step that records: a call counts once, also for a request that comes right now
            self._pending -= request.n

    async def _serve_in_turn(self, request: Request) -> list[Turn]:
        limit = self.limits.max_total_tokens
        if request.characters() > limit * self._renderer.longest_token:
            self._refuse_long_prompt(f"a prompt of {request.characters()} characters")
        try:
            prompt = (
                await asyncio.to_thread(self._prompt, request)
                if request.new_bytes > LONG_TEXT_BYTES
                else self._prompt(request)
            )
        except TemplateRefusal as refusal:
            self._blame(request, refusal)
            raise
        room = limit - len(prompt.ids)
        if room < 1:
            self._refuse_long_prompt(f"a prompt of {len(prompt.ids)} tokens")
        return await self._sample(
            request, prompt, min(room, self.limits.max_completion_tokens or room, request.max_tokens or room)
        )

    def _blame(self, request: Request, refusal: TemplateRefusal) -> None:
        """Ends the session where the template refuses what the model has said here: the agent's outcome, no client's
        mistake."""
        own = {place for place, link in enumerate(self._links(request)[1:]) if link in self._after_turn}
        messages, tools = [entry.message for entry in request.messages], list(request.tools.functions) or None
        if blame.models_doing(self._renderer, messages, own, tools):
            self.close(Outcome.AGENT_ERROR, f"the model said what can't be shown to it again: {refusal}")
            self.refuse_if_closed()

    def _refuse_long_prompt(self, what: str) -> None:
        self.close(Outcome.TOKEN_LIMIT, f"{what} does not fit into {self.limits.max_total_tokens} tokens")
        self.refuse_if_closed()

    def _prompt(self, request: Request) -> _Prompt:
        if isinstance(request.text, tuple):
            return self._ids_prompt(request.text)
        if request.text is not None:
            return self._text_prompt(request.text)
        links, messages = self._links(request), [entry.message for entry in request.messages]
        tools = list(request.tools.functions) or None
        upto = next((i for i in range(len(messages), 0, -1) if links[i] in self._after_turn), None)
        if not self._renderer.keep_reasoning:
            messages = self._with_reasoning(messages, links)
        if upto is not None:
            call = self._call_of(links[upto], messages[upto - 1])
            ids = self._renderer.extend(
                call.prompt_ids, call.completion_ids, call.finish_reason, messages[:upto], messages[upto:], tools
            )
            if ids is not None:
                return _Prompt(ids, call.index, links, "")
        ids = self._renderer.render(self._with_reasoning(messages, links), tools)
        parent = self._longest_recorded_prefix(ids)
        why = "the template can't only append" if upto is not None else "no recorded turn in the history"
        return _Prompt(ids, parent, links, why if parent is None else "")

    def _text_prompt(self, text: str) -> _Prompt:
        """A completion counts as its tokens read, the end token included. Also run in a thread: other calls may be
        recorded meanwhile."""
        links = [hashlib.blake2b(text.encode(), key=b"text", digest_size=16).digest()]
        known = max(
            (i for i, recorded in list(self._texts.items()) if text.startswith(recorded)),
            key=lambda i: len(self._texts[i]),
            default=None,
        )
        if known is not None:
            call, new = self.calls[known], text[len(self._texts[known]) :]
            return _Prompt(call.prompt_ids + (call.completion_ids + self._renderer.encode(new)), known, links, "")
        ids = self._renderer.encode(text, begins=True)
        parent = self._longest_recorded_prefix(ids)
        return _Prompt(ids, parent, links, "" if parent is not None else "no recorded text is its beginning")

    def _ids_prompt(self, ids: tuple[int, ...]) -> _Prompt:
        """Raises BadRequest for ids that no token has: vLLM would refuse them."""
        unknown = next((i for i in ids if not 0 <= i < self._renderer.vocabulary), None)
        if unknown is not None:
            raise BadRequest(f"prompt: {unknown} is no token id: there are {self._renderer.vocabulary}")
        parent = self._longest_recorded_prefix(ids)
        link = hashlib.blake2b(repr(ids).encode(), key=b"ids", digest_size=16).digest()
        return _Prompt(ids, parent, [link], "" if parent is not None else "no recorded tokens are its beginning")

    def _links(self, request: Request) -> list[bytes]:
        """The request's chain; as far as its messages are those of the request before, it is not computed again."""
        entries, links = self._last
        same = (
            sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], zip(entries, request.messages)))
            if links[0] == request.tools.digest
            else 0
        )
        start = links[same] if same else request.tools.digest
        links = [*links[:same], *chain(start, (entry.digest for entry in request.messages[same:]))]
        self._last = request.messages, links
        return links

    def _with_reasoning(self, messages: list[Message], links: list[bytes]) -> list[Message]:
        """Clients don't send reasoning back: a template that keeps it needs it."""
        out = []
        for message, link in zip(messages, links[1:]):
            if message["role"] == "assistant" and not message.get("reasoning_content") and link in self._after_turn:
                reasoning = self._turns[self._call_of(link, message).index].reasoning
                message = {**message, "reasoning_content": reasoning} if reasoning else message
            out.append(message)
        return out

    def _call_of(self, link: bytes, message: Message) -> Call:
        """Several samples can read the same and differ in tokens: the ids of tool calls tell them apart, else the
        last."""
        candidates = self._after_turn[link]
        if message.get("tool_calls"):
            named = message["tool_calls"][0]["id"]
            return self.calls[next((i for i in candidates if named == call_forms.call_id(i, 0)), candidates[-1])]
        return self.calls[candidates[-1]]

    def _longest_recorded_prefix(self, ids: tuple[int, ...]) -> int | None:
        """The call whose prompt + completion a new render starts with, although its messages were not recognised."""
        best, best_length = None, 0
        for call in self.calls:
            length, cut = len(call.prompt_ids) + len(call.completion_ids), len(call.prompt_ids)
            if (
                best_length < length <= len(ids)
                and ids[:cut] == call.prompt_ids
                and ids[cut:length] == call.completion_ids
            ):
                best, best_length = call.index, length
        return best

    async def _sample(self, request: Request, prompt: _Prompt, max_tokens: int) -> list[Turn]:
        started = time.monotonic()
        results = await asyncio.gather(
            *(self._generate(request, prompt, max_tokens) for _ in range(request.n)), return_exceptions=True
        )
        # what was sampled is recorded, also when another choice of the same request failed
        turns = [self._record(request, prompt, result, started) for result in results if isinstance(result, Completion)]
        for failure in results:
            if isinstance(failure, PromptTooLong):
                self.close(Outcome.TOKEN_LIMIT, str(failure))
                self.refuse_if_closed()
            if isinstance(failure, BaseException):
                # also a mistake of ours: whatever it is, it is not the model's failure
                self.close(Outcome.INFRASTRUCTURE_ERROR, f"{type(failure).__name__}: {failure}")
                raise failure
        return turns

    async def _generate(self, request: Request, prompt: _Prompt, max_tokens: int) -> Completion:
        self._issued += 1
        completion = await self.client.generate(
            prompt.ids,
            max_tokens=max_tokens,
            temperature=self.sampling.temperature,
            cache_salt=self.cache_salt,
            stop_token_ids=self._renderer.stop_token_ids,
            request_id=f"{self._id}-{self._issued}",
            stop=request.stop,
        )
        self._count("reissued", completion.reissues)
        return completion

    def _record(self, request: Request, prompt: _Prompt, completion: Completion, started: float) -> Turn:
        index, link = len(self.calls), prompt.links[-1]
        same = next((i for i in self._asked.get(link, ()) if self.calls[i].prompt_ids == prompt.ids), None)
        parent, part = (
            (same, "prompt")
            if same is not None
            else (prompt.parent, "completion" if prompt.parent is not None else None)
        )
        call = Call(
            index=index,
            parent=parent,
            parent_part=part,
            prompt_ids=prompt.ids,
            completion_ids=completion.token_ids,
            logprobs=completion.logprobs,
            policy_versions=completion.policy_versions,
            finish_reason=completion.finish_reason,
            rerendered=parent is None and index > 0,
            started_s=started - self._opened,
            seconds=time.monotonic() - started,
        )
        turn = self._read_turn(request, call)
        self.calls.append(call)
        self._turns.append(turn)
        self._asked.setdefault(link, []).append(index)
        if request.text is not None:
            text = request.text if isinstance(request.text, str) else self._renderer.text(prompt.ids)
            self._texts[index] = text + self._renderer.text(call.completion_ids)
            new_messages = [
                {"role": "text", "content": text[len(self._texts.get(parent, "")) if part == "completion" else 0 :]}
            ]
        else:
            self._after_turn.setdefault(next_link(link, canonical(turn.message()).digest), []).append(index)
            known = next(
                (
                    i
                    for i in range(len(request.messages), 0, -1)
                    if request.messages[i - 1].message["role"] == "assistant"
                ),
                0,
            )
            new_messages = [entry.message for entry in request.messages[known:]]
        self._count("rerendered_roots", int(call.rerendered))
        self._event(
            "call",
            index=index,
            parent=parent,
            seconds=round(call.seconds, 4),
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(completion.token_ids),
            finish_reason=call.finish_reason,
            why_root=prompt.why_root,
            new_messages=new_messages,
            message=turn.message(),
        )
        return turn

    def _read_turn(self, request: Request, call: Call) -> Turn:
        if request.text is not None:
            return Turn(call, self._renderer.text(call.completion_ids, stop=request.stop, ends=False), None, ())
        content, reasoning, tool_calls, malformed = self._renderer.parse(
            call.completion_ids, request.tools.functions if request.parse_tools else (), request.stop, call.prompt_ids
        )
        self._count("malformed_tool_calls", malformed)
        return Turn(call, content, reasoning, tuple(tool_calls))

    def _note_what_is_left_out(self, request: Request) -> None:
        left_out = (*request.left_out, *self._hidden(request))
        self._count("ignored_params", len(left_out))
        self._count("forced_tool_choice", int(request.forced_tool_choice))
        new = [name for name in dict.fromkeys(name[:100] for name in left_out) if name not in self._left_out]
        new = new[: LEFT_OUT_NAMES - len(self._left_out)]
        if new:
            self._left_out.update(new)
            self._event("ignored", fields=new)

    def _hidden(self, request: Request) -> list[str]:
        """What of the request the chat template never shows."""
        messages = [entry.message for entry in request.messages]
        given = {
            "tools": bool(request.tools.functions),
            "tool calls": any("tool_calls" in message for message in messages),
            "tool answers": any(message["role"] == "tool" for message in messages),
        }
        unseen = hidden(self._renderer) if any(given.values()) else ()
        return [f"{what}: the chat template shows none" for what in unseen if given[what]]

    def _event(self, kind: str, **details) -> None:
        self.events.append({"kind": kind, "at_s": round(time.monotonic() - self._opened, 4), **details})

    def _count(self, name: str, number: int = 1) -> None:
        if number:
            self.counters[name] += number
            self._count_in_gateway(name, number)


def _succeeded(task: asyncio.Task) -> bool:
    return not task.cancelled() and task.exception() is None
