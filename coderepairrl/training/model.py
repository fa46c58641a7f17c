"""The model that is trained: a Hugging Face decoder on packed rows, and logprobs of chosen tokens without all logits in
memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from coderepairrl.errors import ConfigError
from coderepairrl.models.logit_map import LogitMap, logit_map
from coderepairrl.training.batch import MicroBatch
from coderepairrl.training.engine_config import LoRAConfig
from coderepairrl.training.sequence_parallel import RowGroup

CHUNK_BYTES = 2**29  # of logits at a time


def _compiled_on_gpu(function: Callable) -> Callable:
    """There its steps over all logits become one or two kernels; on CPU compiling takes longer than it saves."""
    return torch.compile(function) if torch.cuda.is_available() else function


@_compiled_on_gpu
def _statistics(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, logit_map: LogitMap
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, V), (N,) -> logprob of each target, entropy, logarithm of the normaliser, each (N,) float32. Overwrites
    float32 logits."""
    logits = logit_map(logits.float()).div_(temperature)
    norm = logits.logsumexp(-1)
    return (
        logits.gather(1, targets[:, None])[:, 0] - norm,
        norm - ((logits - norm[:, None]).exp() * logits).sum(-1),
        norm,
    )


@_compiled_on_gpu
def _slope(
    logits: torch.Tensor,
    norm: torch.Tensor,
    targets: torch.Tensor,
    grad: torch.Tensor,
    temperature: float,
    logit_map: LogitMap,
) -> torch.Tensor:
    """d loss / d logits = grad / temperature (onehot - softmax) x the map's slope, in their dtype. Overwrites them."""
    dtype, logits = logits.dtype, logit_map(logits.float())
    slope = logit_map.slope(logits)
    probabilities = (logits.div_(temperature) - norm[:, None]).exp_()
    grad = grad.float() / temperature
    at_target = grad * (1 - probabilities.gather(1, targets[:, None])[:, 0])
    out = probabilities.mul_(-grad[:, None]).scatter_(1, targets[:, None], at_target[:, None])
    return (out if isinstance(slope, float) and slope == 1.0 else out.mul_(slope)).to(dtype)


class _ChunkedLogprobs(torch.autograd.Function):
    """(N, d) outputs, (V, d) head, (V,) its bias or None, (N,) ids -> logprob of each id, entropy; logits exist for one
    chunk at a time, also in backward."""

    @staticmethod
    def forward(ctx, hidden, head, bias, targets, temperature, logit_map):
        rows = CHUNK_BYTES // (head.shape[0] * head.element_size())
        ctx.rows = max(1, rows // 256 * 256 or rows)  # a multiple of the matrix units' tiles
        ctx.temperature, ctx.logit_map = temperature, logit_map
        parts = [
            _statistics(F.linear(h, head, bias), ids, temperature, logit_map)
            for h, ids in zip(hidden.split(ctx.rows), targets.split(ctx.rows), strict=True)
        ]
        logprobs, entropy, norms = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, head, bias, targets, norms)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, head, bias, targets, norms = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_head, grad_bias = (
            torch.zeros(of.shape, dtype=torch.float32, device=of.device) if needed else None
            for of, needed in zip((head, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            slope = _slope(
                F.linear(hidden[part], head, bias),
                norms[part],
                targets[part],
                grad[part],
                ctx.temperature,
                ctx.logit_map,
            )
            torch.mm(slope, head, out=grad_hidden[part])
            if grad_head is not None:
                grad_head += slope.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        cast = lambda total: None if total is None else total.to(head.dtype)
        return grad_hidden, cast(grad_head), cast(grad_bias), None, None, None


class LogprobHead(nn.Module):
    """Shares the language model head's weight and bias, so that ZeRO-3 gathers them for this module."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, logit_map: LogitMap = LogitMap()):
        super().__init__()
        self.weight, self.bias, self.logit_map = weight, bias, logit_map

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            return _ChunkedLogprobs.apply(
                hidden.to(self.weight.dtype), self.weight, self.bias, targets, temperature, self.logit_map
            )


class PolicyModel(nn.Module):
    """forward: micro-batch -> (logprobs (N,) float32, entropy (N,) without gradient) of its trained tokens, on each
    rank of the row's group."""

    def __init__(self, model: PreTrainedModel, lora: LoRAConfig | None, row_group: RowGroup | None = None):
        super().__init__()
        self.row_group = row_group
        self.model = adapt(model, lora) if lora else model
        self.model.eval()  # a policy's probabilities are its own: no dropout, no noise in a router
        head = model.get_output_embeddings()
        self.head = LogprobHead(head.weight, head.bias, logit_map(model))

    def forward(self, micro: MicroBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        if self.row_group is None:
            return self._outputs(micro, temperature)
        part, own = self.row_group.part(micro)
        logprobs, entropy = self.row_group.whole(torch.stack(self._outputs(part, temperature)), own, len(micro.targets))
        return logprobs, entropy.detach()

    def _outputs(self, micro: MicroBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.model.get_decoder()(
            input_ids=micro.token_ids,
            position_ids=micro.position_ids,
            layout=micro.layout,
            row_group=self.row_group,
            use_cache=False,
        ).last_hidden_state[0]  # (T, d)
        return self.head(hidden.index_select(0, micro.sources), micro.targets, temperature)

    @contextmanager
    def base(self) -> Iterator[None]:
        """The model without its LoRA adapters: the reference policy, at no cost in memory."""
        layers = [module for module in self.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def published(self) -> Iterator[tuple[str, list[nn.Parameter], Callable[..., torch.Tensor]]]:
        """(Hugging Face name, parameters that it is made of, how) of every weight that vLLM serves, in order."""
        adapted = {
            f"{name}.base_layer.weight": module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                continue
            layer = adapted.get(name)
            if layer is None:
                yield name.replace(".base_layer.", "."), [parameter], _as_it_is
            else:
                parameters = [parameter, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
                yield name.replace(".base_layer.", "."), parameters, _merged(layer.scaling["default"])


def _as_it_is(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _merged(scaling: float):
    """W + s B A (arXiv:2106.09685, section 4.1), the sum taken in float32."""
    return lambda weight, a, b: torch.addmm(weight.float(), b.float(), a.float(), alpha=scaling).to(weight.dtype)


def adapt(model: PreTrainedModel, lora: LoRAConfig) -> PreTrainedModel:
    """Adapters in the layers that the targets name. Raises ConfigError where one names none, or what can't be
    merged."""
    linear = [name for name, module in model.get_decoder().named_modules() if isinstance(module, nn.Linear)]
    unknown = [target for target in lora.targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            f"engine.lora.targets: {', '.join(unknown)}: no linear layer of {model.config.model_type} is "
            f"called so: choose among {', '.join(known) or 'none, train without lora'}"
        )
    return inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets), model)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, whatever the family calls them: the list with most of its weights."""
    lists = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def recompute(model: PreTrainedModel, share: float) -> None:
    """So much of the layers, spread evenly over the depth, keep only their input for backward and compute the rest
    again there."""
    model.gradient_checkpointing_enable({"use_reentrant": True})
    # Under a frozen embedding (LoRA) the first layer's input has no gradient: recomputing would cut the layer off, and
    # ZeRO-3 would reduce the gradients of a leaf module before they are there.
    model.enable_input_require_grads()
    for number, layer in enumerate(layers_of(model)):
        layer.gradient_checkpointing = math.floor((number + 1) * share) > math.floor(number * share)
        layer.training = True  # transformers recomputes in training only; its parts stay as they are
        for name in [name for name in vars(layer) if "drop" in name]:
            setattr(layer, name, 0.0)
