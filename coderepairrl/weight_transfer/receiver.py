"""The receiving end for gloo: a WeightTransferEngine in vLLM's workers.

`--worker-extension-cls coderepairrl.weight_transfer.receiver.WorkerExtension` makes each worker import this module before it loads
the model, which registers the engine.
"""
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from coderepairrl.weight_transfer import gloo


class WorkerExtension:
    """Empty: only its module matters."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine):
    """Receives whole tensors in Hugging Face's names and layout; vLLM's layerwise reload packs them."""
    init_info_cls, update_info_cls = InitInfo, UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, info: InitInfo) -> None:
        config = self.parallel_config
        rank = info.rank_offset + config.data_parallel_index * config.world_size + config.rank
        self._store = dist.TCPStore(info.master_address, info.master_port, info.world_size, is_master=False, timeout=timedelta(seconds=info.timeout_s))
        self._group = gloo.join(self._store, rank, info.world_size, info.timeout_s)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # the base class's version synchronises an accelerator, which is not there
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, info: UpdateInfo) -> None:
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            gloo.broadcast(self._group, tensor)
            self.model.load_weights([(name, tensor)])

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group = self._store = None


WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
