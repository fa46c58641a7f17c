"""DeepSpeed ZeRO-3 behind six verbs: forward, backward, step, gathered parameters, save, load. It knows no tasks and no losses.

Every method is collective: all ranks call it, in the same order, with the same number of micro-batches.
"""
import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules
from transformers import AutoModelForCausalLM, AutoTokenizer

from coderepairrl.engine_config import EngineConfig
from coderepairrl.errors import ConfigError


class Engine:
    """`rank`, `world_size`, `module` (the Hugging Face model), and the verbs below."""

    def __init__(self, model_path: str | Path, config: EngineConfig):
        if not (Path(model_path) / "config.json").exists():
            raise ConfigError(f"{model_path}: no model there (no config.json): make it first, or correct the path")
        if not torch.cuda.is_available():
            # the shared-memory all-reduce is compiled at first use, which takes a minute and a compiler; gloo needs neither
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(verbose=False, timeout=timedelta(hours=12))
        self.rank, self.world_size, self.config = dist.get_rank(), dist.get_world_size(), config
        self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, config.dtype), attn_implementation="sdpa")
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
        if config.leaf_modules:
            set_z3_leaf_modules(model, config.leaf_modules)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._deepspeed_config())
        self.module = self._engine.module
        self.steps = 0

    def _deepspeed_config(self) -> dict:
        return {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": self.config.gradient_clipping,
            "bf16": {"enabled": self.config.dtype == "bfloat16"}, "steps_per_print": 10**9, "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": 3, "overlap_comm": torch.cuda.is_available(), "contiguous_gradients": True,
                                  "stage3_param_persistence_threshold": self.config.persistence_threshold},
        }

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) ids -> (B, T, V) float32 logits."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            return self._engine(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulates gradients. Ranks are summed, not averaged; `last` marks the last micro-batch of a step."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world_size)  # DeepSpeed averages over ranks

    def step(self) -> tuple[float, float]:
        """One optimizer step. Returns (gradient norm before clipping, learning rate)."""
        rate = self.learning_rate()
        for group in self._engine.optimizer.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        self.steps += 1
        return float(self._engine.get_global_grad_norm()), rate

    def learning_rate(self) -> float:
        config = self.config
        rate = config.learning_rate * min(1.0, (self.steps + 1) / max(1, config.warmup_steps))
        if config.decay_steps:
            progress = min(1.0, self.steps / config.decay_steps)
            rate *= max(config.final_share, 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * progress)).item())
        return rate

    def parameters(self, bucket_elements: int = 50_000_000) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, whole tensor) of every parameter, gathered bucket by bucket in lockstep on all ranks."""
        bucket: list[tuple[str, torch.nn.Parameter]] = []
        size = 0
        for name, parameter in self.module.named_parameters():
            bucket.append((name, parameter))
            size += parameter.ds_numel
            if size >= bucket_elements:
                yield from self._gather(bucket)
                bucket, size = [], 0
        yield from self._gather(bucket)

    def _gather(self, bucket: list[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
        with deepspeed.zero.GatheredParameters([p for _, p in bucket]):
            yield from [(name, parameter.data.detach()) for name, parameter in bucket]

    def weights(self) -> dict[str, torch.Tensor]:
        """Collective. All parameters whole, in CPU memory, on rank 0; nothing on the others."""
        out = {}
        for name, tensor in self.parameters():
            if self.rank == 0:
                out[name] = tensor.to("cpu", copy=True)
        return out

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Rank 0. A Hugging Face folder that transformers and vLLM load as it is; appears whole or not at all."""
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        self.module.save_pretrained(temporary, state_dict=weights)
        self.tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    def save(self, folder: Path, state: dict, export: Path) -> None:
        """Collective. Model, optimizer, `state` (JSON) and a copy of the export as policy/, so that `load` goes on from here."""
        temporary = folder.with_name(folder.name + ".tmp")
        if self.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        dist.barrier()
        self._engine.save_checkpoint(str(temporary), tag="state", client_state={"steps": self.steps})
        if self.rank == 0:
            shutil.copytree(export, temporary / "policy")
            (temporary / "state.json").write_text(json.dumps(state))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        dist.barrier()

    def load(self, folder: Path) -> dict:
        _, client_state = self._engine.load_checkpoint(str(folder), tag="state")
        self.steps = client_state["steps"]
        return json.loads((folder / "state.json").read_text())

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: list[float], operation: dist.ReduceOp) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def close(self) -> None:
        dist.barrier()
        dist.destroy_process_group()
