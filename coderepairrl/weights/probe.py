"""The proof that a server computes with the weights that it is said to have: logprobs of a short row of tokens, vLLM's
against the trainer's.

    policy/probe.json       {"token_ids": [...], "bound": nats, "logprobs": {version: [one a token but the first]}}, of
                            the newest versions: written by the trainer before any server can have them
    policy/unproven.jsonl   {"version": 3, "reason": ...}: a server sampled under this version before its probe failed.
                            Nothing with a token of it is ever trained, or counted as a result; the weights have gone on
                            under another version

The row is fixed, drawn once from the vocabulary's size. vLLM's numbers are a prompt's logprobs, asked for where the
gateway asks, so they come from its own weights, packed copies and kernels; the trainer's come from its forward pass
under the weights that it sent. Not seen by it: what is below the rounding of the dtype, and decoding. The next steps'
`logprob_gap`, which is of sampled tokens, sees both.
"""

import asyncio
import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import requests

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.rollout.ledger import rows

TOKENS = 64
KEPT_VERSIONS = 16  # in probe.json: a server can come up with weights that are no longer the newest
LARGEST = 10.0  # times what they may be off in the mean: a single token
# nats: mean size of a logprob up to which the bound is meant as it stands; rounding grows with the logits
COMMON = 10.0
POLL_S = 0.02


@dataclass(frozen=True)
class Gap:
    """Of |trainer - vLLM| over the row's logprobs, nats."""

    mean: float
    largest: float


@dataclass(frozen=True)
class Probe:
    """What weights `version` have to say of the row, and how far a server's mean may be off: `bound`, in nats."""

    version: int
    token_ids: tuple[int, ...]  # (T,)
    logprobs: tuple[float, ...]  # (T - 1,): nothing predicts the first
    bound: float

    @property
    def allowed(self) -> float:
        """Of the mean gap, nats."""
        return self.bound * max(1.0, fmean(map(abs, self.logprobs)) / COMMON)

    def prove(self, url: str, timeout_s: float) -> Gap:
        """Asks the server. Raises EngineError when it computes with other weights than these, or doesn't answer."""
        gap = difference(self.logprobs, ask(url, self.token_ids, self.version, timeout_s))
        allowed = self.allowed
        if not (gap.mean <= allowed and gap.largest <= LARGEST * allowed):  # not a number is beyond every bound
            raise EngineError(
                f"vLLM at {url} does not compute what weights {self.version} do: logprobs of "
                f"{len(self.logprobs)} tokens are {gap.mean:.2g} off in the mean and {gap.largest:.2g} at "
                f"most, allowed are {allowed:.2g} and {LARGEST * allowed:.2g} (server.probe_bound)"
            )
        return gap


def difference(expected: Sequence[float], found: Sequence[float | None]) -> Gap:
    """What is missing, or not a number in one of them, makes the gap not a number."""
    if len(expected) != len(found):
        return Gap(math.nan, math.nan)
    gaps = [math.nan if b is None else abs(a - b) for a, b in zip(expected, found, strict=True)]
    return Gap(fmean(gaps), math.nan if any(map(math.isnan, gaps)) else max(gaps))


def token_ids(vocabulary: int, max_model_len: int) -> tuple[int, ...]:
    """The row. vLLM needs room for one sampled token behind it."""
    draw = random.Random(vocabulary)
    return tuple(draw.randrange(vocabulary) for _ in range(min(TOKENS, max_model_len - 1)))


def write(run: Path, probe: Probe) -> None:
    """Adds it to the file."""
    path = run / "policy" / "probe.json"
    known = list((read_json(path) or {"logprobs": {}})["logprobs"].items())[1 - KEPT_VERSIONS :]
    logprobs = dict(known) | {str(probe.version): probe.logprobs}
    write_json(path, {"token_ids": probe.token_ids, "bound": probe.bound, "logprobs": logprobs})


def read(run: Path, version: int) -> Probe | None:
    """None: the trainer has not written it yet, or has written many since."""
    file = read_json(run / "policy" / "probe.json")
    if file is None or str(version) not in file["logprobs"]:
        return None
    return Probe(version, tuple(file["token_ids"]), tuple(file["logprobs"][str(version)]), file["bound"])


async def awaited(run: Path, version: int, timeout_s: float) -> Probe:
    """As soon as the trainer, which may still be starting, has written it. Raises EngineError when it doesn't."""
    try:
        async with asyncio.timeout(timeout_s):
            while (probe := read(run, version)) is None:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise EngineError(
            f"vLLM is up, but in {timeout_s:.0f} s the trainer did not say what weights {version} "
            "compute: see trainer.log, or raise server.start_timeout_s"
        ) from None
    return probe


def unproven_versions(run: Path) -> set[int]:
    return {row["version"] for row in rows(run / "policy" / "unproven.jsonl")}


def ask(url: str, token_ids: Sequence[int], version: int, timeout_s: float) -> list[float | None]:
    """vLLM's logprob of every token but the first: before all that waits (`priority`), from no cache (`cache_salt`)."""
    name = f"probe-{version}-{secrets.token_hex(4)}"
    body = {
        "request_id": name,
        "cache_salt": name,
        "priority": -1,
        "token_ids": token_ids,
        "sampling_params": {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "detokenize": False},
    }
    with requests.Session() as http:
        http.trust_env = False  # a proxy of the environment is not for this
        try:
            response = http.post(f"{url}/inference/v1/generate", json=body, timeout=max(0.1, timeout_s))
        except requests.RequestException as error:
            raise EngineError(
                f"vLLM at {url} did not answer the probe of weights {version} ({type(error).__name__}): see its log"
            ) from error
    if not response.ok:
        raise EngineError(
            f"vLLM at {url} refused the probe of weights {version} ({response.status_code} "
            f"{response.text[:200]}): see its log"
        )
    entries = response.json()["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries, token_ids[1:], strict=True)]
