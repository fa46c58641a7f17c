"""Packed chunks over NCCL, between GPUs: vLLM's own communicator and packing, whose other end is vLLM's engine "nccl".

Importing this imports vLLM (seconds).
"""

import socket
from collections.abc import Iterator
from concurrent.futures import wait

import torch
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.packed_tensor import (
    DEFAULT_PACKED_BUFFER_SIZE_BYTES,
    DEFAULT_PACKED_NUM_BUFFERS,
    packed_nccl_broadcast_producer,
)
from vllm.utils.nccl import unpinned_nccl_env

from coderepairrl.errors import EngineError
from coderepairrl.weights.threads import in_thread

ABORT_S = 5.0


class NcclChannel:
    """Rank 0 of the group of sender and vLLM's workers. `init_info` is what a worker needs to join, `rank_offset`
    apart.

    The methods are called in a thread whose current device is `device`.
    """

    def __init__(self, host: str, world_size: int, device: torch.device, timeout_s: float):
        # the communicator's first collective is on a tensor of the default type, and vLLM's is float32
        assert torch.get_default_dtype() == torch.float32, (
            f"torch's default dtype was changed to {torch.get_default_dtype()}"
        )
        self._world_size, self._device, self._timeout_s = world_size, device, timeout_s
        self._host, self._listener = host, socket.create_server((host, 0))
        self._port = self._listener.getsockname()[1]
        self.init_info = {
            "master_address": host,
            "master_port": self._port,
            "world_size": world_size,
            "packed": True,
            "packed_buffer_size_bytes": DEFAULT_PACKED_BUFFER_SIZE_BYTES,
            "packed_num_buffers": DEFAULT_PACKED_NUM_BUFFERS,
        }
        self._communicator: PyNcclCommunicator | None = None

    def connect(self) -> None:
        """The rendezvous has a time limit; a worker that dies in the second after it leaves this thread, not the
        trainer's, waiting."""
        try:
            group = StatelessProcessGroup.create(
                self._host,
                self._port,
                rank=0,
                world_size=self._world_size,
                store_timeout=max(1, int(self._timeout_s)),
                listen_socket=self._listener,
            )
            with unpinned_nccl_env():
                communicator = PyNcclCommunicator(group, self._device)
        except (RuntimeError, OSError) as error:  # a store that timed out closes its listener twice: OSError
            raise EngineError(
                f"vLLM did not join the transfer ({str(error.__context__ or error)[:200]}): restart it from the newest "
                "export"
            ) from error
        if communicator.disabled:
            raise EngineError(
                "NCCL could not be loaded: set VLLM_NCCL_SO_PATH to libnccl.so.2 (2.29.7 or newer), or "
                "server.weight_backend to gloo"
            )
        self._communicator = communicator

    def send(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Returns when the last byte has left. The producer packs on streams of its own, which must have used a tensor
        before its memory is."""

        def used() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                tensor.record_stream(torch.cuda.current_stream())
                yield name, tensor

        try:
            packed_nccl_broadcast_producer(
                used(),
                self._communicator,
                0,
                lambda pair: pair[1],
                DEFAULT_PACKED_BUFFER_SIZE_BYTES,
                DEFAULT_PACKED_NUM_BUFFERS,
            )
        except RuntimeError as error:
            raise EngineError(
                f"the broadcast to vLLM broke ({str(error)[:200]}): restart it from the newest export"
            ) from error

    def abort(self) -> None:
        """From any thread. Kernels that wait for a dead peer end; ncclCommDestroy would wait for them."""
        communicator, self._communicator = self._communicator, None
        if communicator is None:
            return
        communicator.disabled = True  # a broadcast that `send` has not begun yet does nothing: the handle is gone

        def abort() -> None:
            with torch.accelerator.device_index(self._device.index):
                communicator.nccl.ncclCommAbort(communicator.comm)

        aborted = in_thread(abort)
        if not wait([aborted], ABORT_S).done:
            print(f"NCCL's communicator to vLLM was not aborted within {ABORT_S:.0f} s", flush=True)
