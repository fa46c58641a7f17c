"""Rank 0's end of a weight update.

The gather of the buckets is collective and runs in the main thread; all that can wait for vLLM runs in a daemon thread:
the HTTP calls, the broadcast. Between the two lies one bucket. When vLLM fails or the deadline comes, the main thread
learns it at its next bucket and goes on gathering alone, so that the other ranks, which know nothing of vLLM, are never
left waiting.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import torch

from coderepairrl.errors import EngineError
from coderepairrl.processes.starting import address_towards
from coderepairrl.weights.probe import Gap, Probe
from coderepairrl.weights.threads import in_thread

Address = tuple[str, int]  # (url, pid) of a server: a restart may keep the one, but not the other
ParameterSpecs = list[tuple[str, torch.dtype, tuple[int, ...]]]  # Hugging Face name, dtype, whole shape
Bucket = list[tuple[str, torch.Tensor]]
GRACE_S = 10.0  # for the thread to end after an abort, for servers to stop sampling


@dataclass(frozen=True)
class Sent:
    """What an update took."""

    paused_s: float  # from the answer to pause until the answer to resume
    connect_s: float  # of these, making the communicator; 0 where it was there
    bytes: int  # to each server
    proof_s: float = 0.0  # from resume until every server has shown that it has the weights; requests run meanwhile
    gap: Gap | None = None  # the largest of them; None: there was no probe


class UnprovenError(EngineError):
    """The update failed when tokens could be sampled already: what carries its version may come from other weights."""


class WeightSender:
    """Keeps the communicator between updates, as long as the servers are the same processes."""

    def __init__(self, backend: Literal["gloo", "nccl"], dtype: torch.dtype, device: torch.device, timeout_s: float):
        """`dtype`: what the servers compute in, and what is sent."""
        if backend == "nccl":  # imports vLLM, which takes seconds: here, and not while a server is paused
            from coderepairrl.weights.nccl import NcclChannel as Channel
        else:
            from coderepairrl.weights.gloo import GlooChannel as Channel
        self.make_channel, self.dtype, self.device, self.timeout_s = Channel, dtype, device, timeout_s
        self.channel: Channel | None = None
        self.servers: list[Address] = []  # that are on the channel

    def send(
        self,
        servers: list[Address],
        version: int,
        layout: ParameterSpecs,
        buckets: Iterable[Bucket],
        probe: Probe | None = None,
    ) -> Sent:
        """`buckets` holds what `layout` says; it is iterated to its end whatever vLLM does. Then every new token
        carries `version`.

        Raises EngineError when the update failed, also by its `probe`: the servers are then not to be resumed, but
        restarted.
        """
        update = _Update(self, servers, version, layout, probe)
        try:
            for bucket in buckets:
                update.put(bucket)
        except BaseException as error:
            update.give_up(error)
            raise
        return update.finish()

    def close(self) -> None:
        """The servers may be given another sender then."""
        if self.channel is not None:
            self.channel.abort()
        self.channel, self.servers = None, []


class _Update:
    """One update in a thread of its own, fed by `put`, ended by `finish`."""

    def __init__(
        self, sender: WeightSender, servers: list[Address], version: int, layout: ParameterSpecs, probe: Probe | None
    ):
        self._sender, self._servers, self._version, self._probe = sender, servers, version, probe
        self._layout = [
            (name, sender.dtype if dtype.is_floating_point else dtype, tuple(shape)) for name, dtype, shape in layout
        ]
        self._channel = sender.channel
        self._end = time.monotonic() + sender.timeout_s
        self._given = 0  # tensors
        self._changed = threading.Condition()  # guards the next three
        self._bucket: Bucket | None = None  # that the thread has not taken yet
        self._complete = False
        self._error: BaseException | None = None
        self._resumed = False  # a server may be sampling with what it was sent
        self._thread = in_thread(self._run)

    def put(self, bucket: Bucket) -> None:
        """Copies the bucket and waits until the thread has taken the one before. Does nothing once the update has
        failed."""
        if self._error is not None:
            return
        copies = []
        for name, tensor in bucket:
            expected, dtype, shape = self._layout[self._given]
            # vLLM would read other weights into these, or wait for ever
            if (name, tuple(tensor.shape)) != (expected, shape):
                raise ValueError(
                    f"the buckets hold {name} {tuple(tensor.shape)} where the layout says {expected} {shape}"
                )
            copies.append(
                (name, tensor.detach().to(self._sender.device, dtype, memory_format=torch.contiguous_format, copy=True))
            )
            self._given += 1
        if self._sender.device.type == "cuda":
            # from here on any stream may read the copies, and the bucket may go
            torch.cuda.current_stream().synchronize()
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._bucket is None or self._error is not None, self._left())
            self._bucket = copies
            self._changed.notify_all()
        if not in_time:
            self.give_up(self._late())

    def finish(self) -> Sent:
        if self._error is None and self._given != len(self._layout):
            self.give_up(
                ValueError(f"the buckets hold {self._given} tensors where the layout says {len(self._layout)}")
            )
        with self._changed:
            self._complete = True
            self._changed.notify_all()
        if not wait([self._thread], self._left()).done:
            self.give_up(self._late())
            wait([self._thread], GRACE_S)
        self._sender.channel, self._sender.servers = (
            (self._channel, self._servers) if self._error is None else (None, [])
        )
        if self._resumed and isinstance(self._error, EngineError):
            raise UnprovenError(str(self._error)) from self._error
        if self._error is not None:
            raise self._error
        return self._thread.result()

    def give_up(self, error: BaseException) -> None:
        """From any thread; the first error counts."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()
        if self._channel is not None:
            self._channel.abort()

    def _late(self) -> EngineError:
        return EngineError(
            f"vLLM did not take the weights within {self._sender.timeout_s:.0f} s: "
            "restart it from the newest export, or raise server.update_timeout_s"
        )

    def _left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    # ---- from here on: the thread

    def _run(self) -> Sent:
        try:
            return self._converse()
        except BaseException as error:
            self.give_up(error)
            raise

    def _converse(self) -> Sent:
        if self._sender.device.type == "cuda":
            torch.cuda.set_device(self._sender.device)  # a thread begins on device 0
        # when it is there all ranks are gathering: no server is paused while one of them is still training
        self._await_bucket()
        self._post("pause", {"mode": "keep", "clear_cache": "true"})
        paused = time.monotonic()
        if self._channel is None or self._sender.servers != self._servers:
            self._connect()
        connected = time.monotonic()
        self._post("start_weight_update")
        update_info = {
            "names": [name for name, _, _ in self._layout],
            "dtype_names": [str(dtype).removeprefix("torch.") for _, dtype, _ in self._layout],
            "shapes": [shape for _, _, shape in self._layout],
        }
        # vLLM answers when it has all weights
        answers = self._begin("update_weights", [{"update_info": update_info}] * len(self._servers))
        self._channel.send(self._weights())
        for answer in answers:
            answer.result()
        # the probe waits in each server when that is resumed: it is in the first batch that the new weights compute
        proofs = [in_thread(self._probe.prove, url, self._left()) for url, _ in self._servers] if self._probe else []
        self._post("finish_weight_update", weight_version=str(self._version))
        self._resumed = True
        self._post("resume")
        resumed = time.monotonic()
        gap = self._proven(proofs)
        sent = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self._layout)
        return Sent(resumed - paused, connected - paused, sent, time.monotonic() - resumed, gap)

    def _proven(self, proofs: list[Future]) -> Gap | None:
        """The largest gap. Where one is too large no server samples on: all are going to be restarted."""
        try:
            return max((proof.result() for proof in proofs), key=lambda gap: gap.mean, default=None)
        except EngineError as error:
            self.give_up(error)
            wait(self._begin("pause", [{}] * len(self._servers), {"mode": "keep"}), GRACE_S)
            raise

    def _connect(self) -> None:
        """One communicator of this process, which is rank 0, and all workers of all servers, server by server."""
        if self._channel is not None:
            self._channel.abort()
        workers = [self._call("GET", url, "get_world_size")["world_size"] for url, _ in self._servers]
        host = address_towards(urlsplit(self._servers[0][0]).hostname)
        self._channel = self._sender.make_channel(host, 1 + sum(workers), self._sender.device, self._left())
        offsets = [1 + sum(workers[:i]) for i in range(len(workers))]
        answers = self._begin(
            "init_weight_transfer_engine",
            [{"init_info": self._channel.init_info | {"rank_offset": offset}} for offset in offsets],
        )
        self._channel.connect()
        for answer in answers:
            answer.result()

    def _await_bucket(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._bucket is not None or self._complete or self._error is not None)
        if self._error is not None:
            raise self._error

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Until `finish` was called; raises when the update was given up."""
        while True:
            self._await_bucket()
            with self._changed:
                bucket, self._bucket = self._bucket, None
                self._changed.notify_all()
            if bucket is None:
                return
            yield from bucket
            del bucket

    def _post(self, path: str, parameters: dict | None = None, **body: Any) -> None:
        for answer in self._begin(path, [body] * len(self._servers), parameters):
            answer.result()

    def _begin(self, path: str, bodies: list[dict], parameters: dict | None = None) -> list[Future]:
        """The same request to each server, at the same time. One that fails ends the update at once, and with it a
        broadcast that waits for the server."""
        answers = [
            in_thread(self._call, "POST", url, path, body, parameters)
            for (url, _), body in zip(self._servers, bodies, strict=True)
        ]
        for answer in answers:
            answer.add_done_callback(lambda done: done.exception() and self.give_up(done.exception()))
        return answers

    def _call(self, method: str, url: str, path: str, body: dict | None = None, parameters: dict | None = None) -> dict:
        with requests.Session() as http:
            http.trust_env = False  # a proxy of the environment is not for this
            try:
                response = http.request(
                    method, f"{url}/{path}", params=parameters, json=body or None, timeout=max(0.1, self._left())
                )
            except requests.RequestException as error:
                raise EngineError(
                    f"vLLM did not answer /{path} ({type(error).__name__}): restart it from the newest export"
                ) from error
        if not response.ok:
            raise EngineError(
                f"vLLM refused /{path} ({response.status_code} {response.text[:200]}): restart it from the newest "
                "export"
            )
        return response.json() if response.content else {}
