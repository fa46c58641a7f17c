"""One agent's session: what it may still ask, and until when. The tree of its calls is call_tree.py's.

A repeated body is the SDK's retry, and gets the same answer, while the first is in flight, while no answer to it was
delivered, or when the SDK says so (x-stainless-retry-count). Sent again after its answer was delivered it is a new
sample.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from coderepairrl.errors import EngineError, GatewayError
from coderepairrl.gateway import blame
from coderepairrl.gateway.call_tree import CallTree, Prompt
from coderepairrl.gateway.rendering import Renderer, TemplateRefusal
from coderepairrl.gateway.request import Request, Seen
from coderepairrl.gateway.session_limits import SamplingConfig, SessionLimits
from coderepairrl.gateway.shown import hidden
from coderepairrl.gateway.turn import Turn
from coderepairrl.gateway.vllm_client import Completion, PromptTooLong, VLLMClient
from coderepairrl.types import Call, Outcome

LEFT_OUT_NAMES = 100  # of ignored fields: a session notes no more, whatever its client makes up
LONG_TEXT_BYTES = 100_000  # of new text: tokenised in a thread, so that other sessions need not wait


class SessionClosed(GatewayError):
    """The session takes no more requests; the message is the one at which agents stop at once."""


@dataclass
class Exchange:
    """A request body and its answer: the turns of its n choices."""

    task: asyncio.Task[list[Turn]]
    delivered: bool = False  # the whole answer was written to a connection that was open

    def answers(self, request: Request) -> bool:
        """Whether the same body asks for the same answer again, not for another one."""
        return not self.task.done() or (_succeeded(self.task) and (request.is_retry or not self.delivered))


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
        self.tree = CallTree(renderer)
        self.calls = self.tree.calls
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
        self._left_out: set[str] = set()
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
                await asyncio.to_thread(self.tree.prompt, request)
                if request.new_bytes > LONG_TEXT_BYTES
                else self.tree.prompt(request)
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
        own = self.tree.sampled_here(request)
        messages, tools = [entry.message for entry in request.messages], list(request.tools.functions) or None
        if blame.models_doing(self._renderer, messages, own, tools):
            self.close(Outcome.AGENT_ERROR, f"the model said what can't be shown to it again: {refusal}")
            self.refuse_if_closed()

    def _refuse_long_prompt(self, what: str) -> None:
        self.close(Outcome.TOKEN_LIMIT, f"{what} does not fit into {self.limits.max_total_tokens} tokens")
        self.refuse_if_closed()

    async def _sample(self, request: Request, prompt: Prompt, max_tokens: int) -> list[Turn]:
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

    async def _generate(self, request: Request, prompt: Prompt, max_tokens: int) -> Completion:
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

    def _record(self, request: Request, prompt: Prompt, completion: Completion, started: float) -> Turn:
        index, (parent, part) = len(self.calls), self.tree.place(prompt)
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
        turn = self._read_turn(request, call, completion)
        self.tree.add(prompt, turn)
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
            new_messages=self.tree.new_messages(request, prompt, call),
            message=turn.message(),
        )
        return turn

    def _read_turn(self, request: Request, call: Call, completion: Completion) -> Turn:
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
