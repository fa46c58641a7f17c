"""The gateway's client of vLLM: token ids in, token ids and logprobs out (POST /inference/v1/generate, vLLM 0.32).

A request that vLLM loses (connection refused or reset, 5xx, aborted) is issued again with the same prompt ids once vLLM
is back, for `wait_s` seconds of trouble at most. A supervisor that restarts vLLM calls `pause()` and `resume()` (or
clears and sets `available`), so that nothing is sampled between the restart and the newest weights.
"""

import asyncio
import itertools
import re
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from coderepairrl.errors import EngineError, GatewayError

TOO_LONG = re.compile("maximum (context|model) length")  # what vLLM 0.32 says of a prompt that it has no room for
POLL_S = 0.25  # between two looks at /health while vLLM is down
JSON = {"Content-Type": "application/json"}
_encode = msgspec.json.Encoder().encode  # a prompt of 64k ids: 0.5 ms, where the standard library takes 5


class _Logprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None


class _Span(msgspec.Struct):
    version: str
    start: int
    end: int


class _Choice(msgspec.Struct):
    """Of vLLM's answer what is needed; the rest is not even parsed."""

    token_ids: list[int]
    logprobs: _Logprobs | None
    finish_reason: str | None
    weight_versions: list[_Span] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Answer).decode


class PromptTooLong(GatewayError):
    """vLLM serves a shorter context than this prompt: the conversation has outgrown it, nothing is broken."""


@dataclass(frozen=True)
class Completion:
    """What vLLM sampled for one prompt; the tuples have one entry a sampled token, the end token included."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_versions: tuple[int, ...]
    finish_reason: str  # stop | length
    reissues: int = 0  # how many times the same prompt ids had to be sent again


class VLLMClient:
    """One vLLM server at `url`. Make and use it inside one event loop; `close()` it at the end.

    available        cleared: nothing is sent. A supervisor's business; the client itself never touches it
                     but through pause() and resume().
    initial_version  the policy version of tokens that vLLM sampled before any weight update labelled its weights.
    reissues         requests sent again, since the start.
    """

    def __init__(self, url: str, wait_s: float, initial_version: int = 0):
        self.url = url.rstrip("/")
        self.wait_s = wait_s
        self.initial_version = initial_version
        self.available = asyncio.Event()
        self.available.set()
        self.reissues = 0
        self._down_since: float | None = None
        self._down_total_s = 0.0
        self._probe: asyncio.Task | None = None
        self._http: aiohttp.ClientSession | None = None

    def pause(self) -> None:
        """The supervisor knows that vLLM is down: hold every request, stop the agents' clocks."""
        self.available.clear()
        self._mark_down()

    def resume(self, version: int | None = None, url: str | None = None) -> None:
        """vLLM is up, at another address maybe, and has the newest weights; `version`: the new initial_version."""
        self.url = url.rstrip("/") if url else self.url
        self.initial_version = self.initial_version if version is None else version
        self._mark_up()
        self.available.set()

    def down_s(self) -> float:
        """Seconds so far in which vLLM was down: agents' clocks leave them out."""
        return self._down_total_s + (time.monotonic() - self._down_since if self._down_since is not None else 0.0)

    async def close(self) -> None:
        if self._probe:
            self._probe.cancel()
        if self._http:
            await self._http.close()

    async def generate(
        self,
        prompt_ids: tuple[int, ...],
        *,
        max_tokens: int,
        temperature: float,
        stop_token_ids: tuple[int, ...],
        cache_salt: str | None,
        request_id: str,
        stop: tuple[str, ...] = (),
    ) -> Completion:
        """Samples one completion. Raises PromptTooLong, and EngineError when vLLM refuses the request or stays away for
        `wait_s`.

        Stop strings end the sampling but stay in token_ids, as sampled; special tokens are text to them. No seed is
        ever sent: it kills vLLM's CPU engine.
        """
        body = {
            "token_ids": prompt_ids,
            "sampling_params": {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": 1.0,
                "top_k": -1,
                "logprobs": 0,
                "stop_token_ids": stop_token_ids,
                "stop": stop,
                "detokenize": bool(stop),
                "skip_special_tokens": False,
            },
        }
        if cache_salt:
            body["cache_salt"] = cache_salt
        deadline = None  # set by the first failure: time in which vLLM works is not bounded here
        for attempt in itertools.count():
            # a fresh id each time: vLLM may still hold the lost request under the old one
            body["request_id"] = f"{request_id}-{attempt}" if attempt else request_id
            await self._until_available(deadline)
            try:
                choice, problem = await self._post(body)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError) as error:
                choice, problem = None, f"{type(error).__name__}: {error}"
                self._mark_down()
            if choice is not None:
                if self.available.is_set():
                    self._mark_up()  # for a supervisor that sets `available` itself
                return self._completion(choice, attempt)
            deadline = deadline or time.monotonic() + self.wait_s
            if time.monotonic() >= deadline:
                raise EngineError(f"vLLM at {self.url} did not answer for {self.wait_s} s ({problem}): see its log")
            await asyncio.sleep(min(POLL_S, self.wait_s))
            await self._until_healthy(deadline, problem)
            self.reissues += 1

    async def _post(self, body: dict) -> tuple[_Choice | None, str]:
        """The only choice of the answer, or None and why the request has to be issued again."""
        if self._http is None:
            # no total time limit: how long a generation may take is the session's deadline;
            # vLLM drops idle connections after 5 s: drop them first, or a POST meets a closing one
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            )
        async with self._http.post(self.url + "/inference/v1/generate", data=_encode(body), headers=JSON) as response:
            if response.status >= 500:
                return None, f"HTTP {response.status}: {(await response.text())[:300]}"
            if response.status != 200:
                said = (await response.text())[:300]
                if response.status == 400 and TOO_LONG.search(said):
                    raise PromptTooLong(
                        f"a prompt of {len(body['token_ids'])} tokens does not fit into vLLM's context: {said}"
                    )
                raise EngineError(
                    f"vLLM refused a request (HTTP {response.status}: {said}): look at its log, and whether it has "
                    "--enable-scale-out"
                )
            answer = await response.read()
        try:
            (choice,) = _decode(answer).choices
        except (msgspec.DecodeError, ValueError) as error:
            raise EngineError(
                f"vLLM's answer can't be read ({error}): this is not the vLLM 0.32 that the gateway knows"
            ) from error
        return (None, "vLLM aborted the request") if choice.finish_reason == "abort" else (choice, "")

    def _completion(self, choice: _Choice, reissues: int) -> Completion:
        token_ids = tuple(choice.token_ids)
        logprobs = tuple(entry.logprob for entry in (choice.logprobs.content or () if choice.logprobs else ()))
        spans = choice.weight_versions or [_Span("default", 0, len(token_ids))]
        # vLLM labels its weights "default" until the first update names them
        versions = tuple(
            version
            for span in spans
            for version in [self.initial_version if span.version == "default" else int(span.version)]
            * (span.end - span.start)
        )
        if not len(token_ids) == len(logprobs) == len(versions):
            raise EngineError(
                f"vLLM answered {len(token_ids)} token ids, {len(logprobs)} logprobs and versions for "
                f"{len(versions)} tokens: this is not the vLLM 0.32 that the gateway knows"
            )
        return Completion(token_ids, logprobs, versions, choice.finish_reason or "stop", reissues)

    async def _until_available(self, deadline: float | None) -> None:
        if self.available.is_set():
            return
        try:
            async with asyncio.timeout(self.wait_s if deadline is None else max(0.0, deadline - time.monotonic())):
                await self.available.wait()
        except TimeoutError:
            raise EngineError(
                f"vLLM at {self.url} was held for more than {self.wait_s} s: see its supervisor's log"
            ) from None

    async def _until_healthy(self, deadline: float, problem: str) -> None:
        """All waiting requests share one probe: 128 of them would be 512 looks a second."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._poll_health())
        done, _ = await asyncio.wait({self._probe}, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise EngineError(f"vLLM at {self.url} did not come back in {self.wait_s} s ({problem}): see its log")

    async def _poll_health(self) -> None:
        while True:
            try:
                async with self._http.get(self.url + "/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
                    if response.status == 200:
                        break
            except (aiohttp.ClientConnectionError, asyncio.TimeoutError):
                pass  # the expected answer of a server that is down: look again
            await asyncio.sleep(POLL_S)
        if self.available.is_set():  # else the supervisor still holds it, and says when the clocks go on
            self._mark_up()

    def _mark_down(self) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()

    def _mark_up(self) -> None:
        if self._down_since is not None:
            self._down_total_s += time.monotonic() - self._down_since
            self._down_since = None
