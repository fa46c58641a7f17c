"""The receiving end for gloo: a WeightTransferEngine in vLLM's workers.

`--worker-extension-cls coderepairrl.weights.receiver.WorkerExtension` makes each worker import this module before it
loads the model, which registers the engine.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from coderepairrl.weights import gloo


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
        self._store = dist.TCPStore(
            info.master_address,
            info.master_port,
            info.world_size,
            is_master=False,
            timeout=timedelta(seconds=info.timeout_s),
        )
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
        silent = [
            layer
            for layer in self.model.modules()
            if (info := get_layerwise_info(layer)).can_load() and not info.load_numel
        ]
        finalize_layerwise_reload(self.model, self.model_config)
        derive_again(self.model, silent)

    def shutdown(self) -> None:
        self._group = self._store = None


def derive_again(model: torch.nn.Module, silent: list[torch.nn.Module]) -> None:
    """In layers that nothing was sent to by name: what they derive from a weight that they share with one that got it.

    vLLM's reload processes a tied weight in one of its layers only ("Limitations" in its docstring): the language model
    head of tied embeddings would keep oneDNN's packed copy of the old weight. On GPUs nothing is derived, nor done
    here.
    """
    weights = (weight for layer in model.modules() for weight in layer._parameters.values())
    users = Counter(id(weight) for weight in weights if weight is not None)
    for layer in silent:
        shares = any(users[id(weight)] > 1 for weight in layer._parameters.values() if weight is not None)
        if shares and isinstance(getattr(layer, "quant_method", None), QuantizeMethodBase):
            layer.quant_method.process_weights_after_loading(layer)


WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
