"""DeepSpeed ZeRO-3 behind a few verbs: logprobs, backward, step, buckets of whole weights, save, load. It knows no
tasks and no losses.

Every method is collective unless it says otherwise: all ranks call it, in the same order, with the same number of
micro-batches.
"""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules
from huggingface_hub import save_torch_state_dict
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from coderepairrl.errors import ConfigError, EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.models.loading import load_config, load_model, own_files, write_own_files
from coderepairrl.processes import cause
from coderepairrl.training import attention, equality, finite, optimizer, sequence_parallel
from coderepairrl.training.batch import MicroBatch
from coderepairrl.training.engine_config import EngineConfig, LoRAConfig
from coderepairrl.training.model import PolicyModel, layers_of, recompute
from coderepairrl.training.sequence_parallel import RowGroup

# of a collective; what lasts has deadlines of its own, and the launcher ends the ranks when one of them died
TIMEOUT = timedelta(hours=12)
SMALL_LAYER = 2**26  # parameters: a layer of 1.7B has 50 million


class Engine:
    """`rank`, `world_size`, `device`, `steps` (optimizer steps so far), `hidden_size`, and the verbs below.

    Micro-batches are dealt to `row_ranks`, of which this is `row_rank`: ranks that share a row have the same ones and
    get the same numbers, so that only the one that `leads_row` adds them to a sum over ranks.
    """

    def __init__(
        self, model_path: str | Path, config: EngineConfig, resume: Path | None = None, reference: bool = False
    ):
        """`resume`: a folder that `save` wrote, at any number of ranks. `reference`: whether `reference_logprobs` will
        be asked for."""
        shape = load_config(model_path)
        if not torch.cuda.is_available():
            # the shared-memory all-reduce is compiled at first use, which takes a minute and a compiler; gloo needs
            # neither
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            torch.compiler.set_stance("force_eager")  # so would Muon's steps be
        else:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed(verbose=False, timeout=TIMEOUT)
        self.rank, self.world_size, self.config = dist.get_rank(), dist.get_world_size(), config
        self.device = (
            torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.autocast = config.autocast and computes_bfloat16(self.device)
        self.row_rank, self.row_ranks = self.rank // config.sequence_ranks, self.world_size // config.sequence_ranks
        self.leads_row = self.rank % config.sequence_ranks == 0
        self._files = own_files(model_path)  # now: a folder can change while a run lasts
        sequence_parallel.check(config.sequence_ranks, self.world_size, shape)
        self._row_group = RowGroup(config.sequence_ranks, TIMEOUT) if config.sequence_ranks > 1 else None
        model = self._load_model(model_path)
        self.hidden_size = model.config.hidden_size
        probe = None if config.random_weights else self._probe(model)
        self.module = self._policy(model, config.lora)
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        universal = resume is not None and self._universal(resume)
        self._engine, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer.make(self.module, config), config=self._deepspeed_config(universal)
        )
        if probe:
            self._check(*probe)
        # never the checkpoint's weights
        self._reference = self._frozen(model_path) if reference and not config.lora else None
        self.steps = 0
        if resume:
            self._load(resume, universal)

    def _load_model(self, path: str | Path) -> PreTrainedModel:
        dtype = getattr(torch, self.config.dtype)
        if not self.config.random_weights:
            return load_model(path, dtype)
        with self.device:
            return AutoModelForCausalLM.from_config(load_config(path), dtype=dtype, attn_implementation=attention.NAME)

    def _policy(self, model: PreTrainedModel, lora: LoRAConfig | None) -> PolicyModel:
        module = PolicyModel(model, lora, self._row_group)
        if self.device.type == "cuda" and self.config.dtype == "bfloat16" and is_liger_kernel_available():
            # norms, rotary embedding and gated MLP, fused; the head is our own
            apply_liger_kernel(model, {"fused_linear_cross_entropy": False})
        if self.config.checkpointed_share or self.config.lora:
            recompute(model, self.config.checkpointed_share)
        leaves = self._leaf_modules(model)
        if leaves:
            set_z3_leaf_modules(model, leaves)
        return module

    def _leaf_modules(self, model: PreTrainedModel) -> list[str]:
        """Class names. ZeRO-3's hooks around each of a small layer's parts take longer than what the parts compute."""
        if self.config.leaf_modules is not None:
            return self.config.leaf_modules
        layers = layers_of(model)
        small = all(sum(p.numel() for p in layer.parameters()) <= SMALL_LAYER for layer in layers)
        whole = small and not self.config.lora and not self.config.checkpointed_share
        return sorted({type(layer).__name__ for layer in layers}) if whole else []

    def _probe(self, model: PreTrainedModel) -> tuple[MicroBatch, float]:
        """A row with what the model's own forward pass says of it, and how far off one may be. Rank 0 computes that."""
        rows = equality.probe(model.config)
        expected = torch.empty(3, sum(len(row.token_ids) - 1 for row in rows), device=self.device)
        if self.rank == 0:
            dtype = torch.bfloat16 if self.autocast else model.dtype
            expected = equality.expectation(model, rows, self.device, dtype)
        dist.broadcast(expected, 0)
        if not expected.isfinite().all():
            raise ConfigError(
                f"{model.config.model_type}: its own forward pass gives what is not a number: its weights "
                "are broken, take others"
            )
        return equality.packed(rows, expected[:2].cpu(), self.hidden_size).to(self.device), expected[2, 0].item()

    @torch.no_grad()
    def _check(self, probe: MicroBatch, allowed: float) -> None:
        """Raises ConfigError, on all ranks, where the engine computes something else."""
        measured = lambda: self.max([equality.difference(probe, *self.logprobs(probe, 1.0))])[0]
        apart = measured()
        if apart > allowed:
            raise equality.refusal(self.module.model.config, apart, allowed, measured())
        self._engine.optimizer.empty_partition_cache()  # what was fetched ahead for a backward pass

    def _frozen(self, path: str | Path) -> deepspeed.DeepSpeedEngine:
        """A second model, partitioned like the first, that nothing changes."""
        module = self._policy(self._load_model(path), None).requires_grad_(False).eval()
        return deepspeed.initialize(model=module, config=self._deepspeed_config(universal=False))[0]

    def _deepspeed_config(self, universal: bool) -> dict:
        config = self.config
        half = config.dtype == "bfloat16"
        layer = sum(p.numel() for p in layers_of(self.module.model)[0].parameters())
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.gradient_clipping,
            "bf16": {"enabled": half},
            "steps_per_print": 10**9,
            "zero_force_ds_cpu_optimizer": False,
            "checkpoint": {"load_universal": universal},
            "zero_optimization": {
                "stage": 3,
                "overlap_comm": torch.cuda.is_available(),
                "contiguous_gradients": True,
                "reduce_scatter": config.muon is None,  # DeepSpeed refuses it with Muon
                "offload_optimizer": {"device": "cpu" if config.offload_optimizer else "none", "pin_memory": True},
                "stage3_prefetch_bucket_size": layer,  # a layer ahead
                "stage3_param_persistence_threshold": config.persistence_threshold,
            },
        } | ({"data_types": {"grad_accum_dtype": "fp32"}} if half else {})

    def logprobs(self, micro: MicroBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(logprob of each trained token, entropy of the distribution that it was drawn from), both (N,) float32;
        entropy has no gradient."""
        return self._logprobs(self._engine, micro, temperature)

    def _logprobs(
        self, engine: deepspeed.DeepSpeedEngine, micro: MicroBatch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast))
            if self.config.offload_activations:
                stack.enter_context(torch.autograd.graph.save_on_cpu(pin_memory=True))
            return engine(micro, temperature)

    def scores(self, micro: MicroBatch) -> torch.Tensor:
        """(N,) logprobs at temperature 1, without a gradient."""
        with torch.no_grad():
            logprobs, _ = self.logprobs(micro, 1.0)
        prefetching = self._engine.optimizer.parameter_offload.get_param_coordinator()
        if prefetching.is_record_trace():  # it would take this half of a pass for the order in which to prefetch
            prefetching._invalidate_trace()
        return logprobs

    def reference_logprobs(self, micro: MicroBatch, temperature: float) -> torch.Tensor:
        """(N,) under the policy that training began with: LoRA's base, which costs no memory, or a second model, frozen
        and partitioned."""
        with torch.no_grad():
            if self._reference is not None:
                return self._logprobs(self._reference, micro, temperature)[0]
            assert self.config.lora, "this engine was made without a reference"
            with self.module.base():
                return self.logprobs(micro, temperature)[0]

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulates gradients. Ranks are summed, not averaged; `last` marks the last micro-batch of a step."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world_size)  # DeepSpeed averages over ranks

    def step(self) -> tuple[float | None, float]:
        """One optimizer step. Returns (gradient norm before clipping, AdamW's learning rate). With Muon there is no
        such norm: DeepSpeed takes it over what Muon has made of the gradient.

        Raises EngineError on every rank where there was none: DeepSpeed leaves the weights alone, in every dtype, when
        the gradient is not finite; or where it has made weights that can't be computed with.
        """
        rate = self.learning_rate()
        for group in self._engine.optimizer.optimizer.param_groups:
            group["lr"] = self._share() * optimizer.learning_rate(group, self.config)
        self._engine.step()
        where, norm = f"optimizer step {self.steps}", float(self._engine.get_global_grad_norm())
        finite.demand(where, {"gradient norm": norm, "learning rate": rate})
        if not self._engine.was_step_applied():
            raise EngineError(f"{where}: DeepSpeed did not apply it: {finite.REMEDY}")
        largest = self._largest_weight()
        if largest > finite.LARGEST_WEIGHT:
            raise EngineError(f"{where}: it has made a weight of {largest:.1e}: {finite.REMEDY}")
        self.steps += 1
        return None if self.config.muon else norm, rate

    def _largest_weight(self) -> float:
        """Magnitude over all ranks of those that are trained; NaN counts as infinite."""
        parts = []
        for parameter in self._trained:
            own = parameter.ds_tensor  # its end is padding on the last ranks
            parts.append(own[: max(0, min(own.ds_numel, parameter.ds_numel - self.rank * own.ds_numel))])
        largest = [part.abs().max() for part in parts if len(part)]
        return self.max([torch.stack(largest).max().item() if largest else 0.0])[0]

    def skip(self) -> float:
        """A step that has nothing to learn from: it is counted, no weight changes. Returns the learning rate."""
        rate = self.learning_rate()
        self.steps += 1
        return rate

    def learning_rate(self) -> float:
        """AdamW's, of the next step."""
        return self._share() * self.config.learning_rate

    def _share(self) -> float:
        """Of the configured learning rates, at the next step."""
        config = self.config
        share = min(1.0, (self.steps + 1) / max(1, config.warmup_steps))
        if config.decay_steps:
            progress = min(1.0, self.steps / config.decay_steps)
            share *= max(config.final_share, 0.5 + 0.5 * math.cos(math.pi * progress))
        return share

    def layout(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Not collective. (Hugging Face name, dtype, whole shape) of every weight that is published, in order."""
        return [
            (name, parameters[0].dtype, tuple(parameters[0].ds_shape))
            for name, parameters, _ in self.module.published()
        ]

    def buckets(self) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """(Hugging Face name, whole tensor on every rank), LoRA merged, bucket by bucket. Valid until the next bucket
        is asked for."""
        # A forward pass without a backward one leaves prefetched parameters in flight. The engine's method of this name
        # also collects all of Python's garbage and gives CUDA's cache back: 0.3 s.
        self._engine.optimizer.empty_partition_cache()
        bucket, size = [], 0
        for entry in self.module.published():
            bucket.append(entry)
            size += sum(p.ds_numel for p in entry[1])
            if size >= self.config.bucket_elements:
                yield from self._gather(bucket)
                bucket, size = [], 0
        if bucket:
            yield from self._gather(bucket)

    def _gather(self, bucket: list) -> Iterator[list[tuple[str, torch.Tensor]]]:
        with deepspeed.zero.GatheredParameters([p for _, parameters, _ in bucket for p in parameters]):
            with torch.no_grad():
                yield [(name, make(*(p.data for p in parameters))) for name, parameters, make in bucket]

    def weights(self) -> dict[str, torch.Tensor]:
        """All published weights whole, in CPU memory, on rank 0; nothing on the others."""
        out = {}
        for bucket in self.buckets():
            if self.rank == 0:
                out |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in bucket}
        return out

    def export(self, folder: Path) -> None:
        """A Hugging Face folder that transformers and vLLM load as it is; appears whole or not at all."""
        weights = self.weights()
        if self.rank == 0:
            temporary = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_torch_state_dict(weights, temporary)
            write_own_files(self._files, temporary, self.config.dtype)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        dist.barrier()

    def save(self, folder: Path, state: dict) -> None:
        """A checkpoint: model, optimizer, `state` (JSON), and the policy as a Hugging Face folder in policy/."""
        temporary = folder.with_name(folder.name + ".tmp")
        if self.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        dist.barrier()
        self._engine.save_checkpoint(
            str(temporary),
            tag="state",
            client_state={"steps": self.steps},
            exclude_frozen_parameters=self.config.lora is not None,
        )
        self.export(temporary / "policy")
        if self.rank == 0:
            write_json(
                temporary / "state.json", state | {"ranks": self.world_size, "optimizer": optimizer.name(self.config)}
            )
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        dist.barrier()

    def _universal(self, folder: Path) -> bool:
        """Whether the checkpoint was written by another number of ranks; it is then converted to the form that any
        number can load."""
        state = read_json(folder / "state.json")
        saved, made_by = state["ranks"], state.get("optimizer", "adamw")  # those of before Muon say nothing
        if made_by != optimizer.name(self.config):
            raise ConfigError(
                f"{folder} holds the state of {made_by}: engine.muon can't change within a run: begin another one "
                f"with model={folder / 'policy'}"
            )
        if saved == self.world_size:
            return False
        if self.config.muon:
            raise ConfigError(
                f"{folder} was written by {saved} ranks, and DeepSpeed converts no state of Muon for "
                f"{self.world_size}: go on with training.ranks={saved}"
            )
        if self.rank == 0 and not (folder / "universal").exists():
            converted = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "deepspeed.checkpoint.ds_to_universal",
                    "--input_folder",
                    folder / "state",
                    "--output_folder",
                    folder / "universal.tmp",
                ],
                capture_output=True,
                text=True,
            )
            if converted.returncode:
                raise EngineError(
                    f"{folder} was written by {saved} ranks and could not be converted for {self.world_size}: "
                    f"{cause.of_text(converted.stderr)}"
                )
            (folder / "universal.tmp").rename(folder / "universal")
        dist.barrier()
        return True

    def _load(self, folder: Path, universal: bool) -> None:
        _, client_state = self._engine.load_checkpoint(
            str(folder), tag="universal" if universal else "state", load_module_strict=self.config.lora is None
        )
        self.steps = client_state["steps"]

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        """NaN counts as infinite: what a maximum makes of it differs between libraries."""
        return self._reduce([math.inf if math.isnan(value) else value for value in values], dist.ReduceOp.MAX)

    def _reduce(self, values: list[float], operation: dist.ReduceOp) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def close(self) -> None:
        dist.barrier()
        dist.destroy_process_group()


def computes_bfloat16(device: torch.device) -> bool:
    """A CPU without instructions for it converts back and forth: a step of the small policy takes 3.5 times as long."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
