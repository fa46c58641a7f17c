"""Live weight updates: both ends of vLLM's own weight-transfer API, for machines without GPUs.

The receiving end is a WeightTransferEngine that vLLM's workers load (`--worker-extension-cls coderepairrl.weight_transfer.WorkerExtension`
imports this module there, which registers the engine "gloo"); the sending end is `WeightSender`, in the trainer's rank 0.

One update: pause (keep running requests, clear the caches) -> init the group -> start -> update (broadcast) -> finish(version) -> resume.
Nothing here resumes after a failure: vLLM with half its weights on the meta device dies when it is resumed, so a failed update
raises EngineError and the server has to be restarted from an export.
"""
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import requests
import torch
import torch.distributed as dist

from coderepairrl.errors import EngineError


def _group(store: dist.TCPStore, rank: int, size: int, timeout_s: float) -> dist.ProcessGroupGloo:
    """A process group beside the default one, which both ends have in use for other things."""
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, size, timedelta(seconds=timeout_s))


def _broadcast(group: dist.ProcessGroupGloo, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()


class WorkerExtension:
    """Empty: vLLM imports the module that holds it before the model is loaded, which is what registers the engine below."""


def _register() -> None:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        host: str
        port: int
        world_size: int
        timeout_s: float

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        names: list[str]
        dtypes: list[str]
        shapes: list[list[int]]

    class GlooWeightTransferEngine(WeightTransferEngine):
        """Receives whole tensors in Hugging Face's names and layout; vLLM's layerwise reload packs them."""
        init_info_cls, update_info_cls = InitInfo, UpdateInfo
        supports_draft_weight_update = False

        def init_transfer_engine(self, info: InitInfo) -> None:
            config = self.parallel_config
            rank = 1 + config.data_parallel_index * config.world_size + config.rank
            self._store = dist.TCPStore(info.host, info.port, info.world_size, is_master=False, timeout=timedelta(seconds=info.timeout_s))
            self._transfer_group = _group(self._store, rank, info.world_size, info.timeout_s)

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # the base class's version synchronises an accelerator, which is not there
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, info: UpdateInfo) -> None:
            for name, dtype, shape in zip(info.names, info.dtypes, info.shapes, strict=True):
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                _broadcast(self._transfer_group, tensor)
                self.model.load_weights([(name, tensor)])

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            self._transfer_group = self._store = None

    WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)


class WeightSender:
    """Rank 0's end. Every update makes a new group on a new port: a restarted server needs no special case, and it costs milliseconds."""

    def __init__(self, url: str, timeout_s: float, host: str = "127.0.0.1"):
        self.url, self.timeout_s, self.host = url, timeout_s, host

    def _call(self, method: str, path: str, parameters: dict | None = None, **body: Any) -> dict:
        try:
            response = requests.request(method, f"{self.url}/{path}", params=parameters, json=body or None, timeout=self.timeout_s)
        except requests.RequestException as error:
            raise EngineError(f"vLLM did not answer /{path} ({type(error).__name__}): restart it from the newest export") from error
        if not response.ok:
            raise EngineError(f"vLLM refused /{path} ({response.status_code} {response.text[:200]}): restart it from the newest export")
        return response.json() if response.content else {}

    def send(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Weights as (Hugging Face name, whole tensor). Afterwards every new token carries `version`. Raises EngineError."""
        weights = [(name, tensor.contiguous()) for name, tensor in weights]
        workers = self._call("GET", "get_world_size")["world_size"]
        store = dist.TCPStore(self.host, 0, 1 + workers, is_master=True, timeout=timedelta(seconds=self.timeout_s), wait_for_workers=False)
        self._call("POST", "pause", {"mode": "keep", "clear_cache": "true"})
        with ThreadPoolExecutor(1) as pool:  # vLLM answers only when the collective is over, so each request needs its own thread
            ready = pool.submit(self._call, "POST", "init_weight_transfer_engine", init_info={
                "host": self.host, "port": store.port, "world_size": 1 + workers, "timeout_s": self.timeout_s})
            try:
                group = _group(store, 0, 1 + workers, self.timeout_s)
            except RuntimeError as error:
                raise EngineError(f"vLLM did not join the transfer ({str(error)[:200]}): restart it from the newest export") from error
            ready.result()
            self._call("POST", "start_weight_update")
            update = pool.submit(self._call, "POST", "update_weights", update_info={
                "names": [name for name, _ in weights], "dtypes": [str(t.dtype).removeprefix("torch.") for _, t in weights],
                "shapes": [list(t.shape) for _, t in weights]})
            try:
                for _, tensor in weights:
                    _broadcast(group, tensor)
            except RuntimeError as error:
                raise EngineError(f"the broadcast to vLLM broke ({str(error)[:200]}): restart it from the newest export") from error
            update.result()
        self._call("POST", "finish_weight_update", weight_version=str(version))
        self._call("POST", "resume")


if "vllm" in sys.modules:  # imported by a vLLM worker; the trainer has no use for vLLM's ten seconds of imports
    _register()
