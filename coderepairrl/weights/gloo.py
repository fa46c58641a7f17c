"""Tensors one by one over gloo, for machines without GPUs."""

from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from coderepairrl.errors import EngineError


def join(store: dist.TCPStore, rank: int, world_size: int, timeout_s: float) -> dist.ProcessGroupGloo:
    """A process group beside the default one, which both ends have in use for other things. Returns when all are
    there."""
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, world_size, timedelta(seconds=timeout_s))


def broadcast(group: dist.ProcessGroupGloo, tensor: torch.Tensor) -> None:
    """From rank 0, which is the trainer's."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()


class GlooChannel:
    """Rank 0 of the group of sender and vLLM's workers. `init_info` is what a worker needs to join, `rank_offset`
    apart."""

    def __init__(self, host: str, world_size: int, device: torch.device, timeout_s: float):
        self._world_size, self._timeout_s = world_size, timeout_s
        self._store = dist.TCPStore(
            host, 0, world_size, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
        )
        self.init_info = {
            "master_address": host,
            "master_port": self._store.port,
            "world_size": world_size,
            "timeout_s": timeout_s,
        }
        self._group: dist.ProcessGroupGloo | None = None

    def connect(self) -> None:
        try:
            self._group = join(self._store, 0, self._world_size, self._timeout_s)
        except RuntimeError as error:
            raise EngineError(
                f"vLLM did not join the transfer ({str(error)[:200]}): restart it from the newest export"
            ) from error

    def send(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Returns when the last tensor is on its way."""
        group = self._group
        for _, tensor in weights:
            try:
                broadcast(group, tensor)
            except RuntimeError as error:
                raise EngineError(
                    f"the broadcast to vLLM broke ({str(error)[:200]}): restart it from the newest export"
                ) from error

    def abort(self) -> None:
        """From any thread."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()
