"""What a model does around its head: outputs or logits multiplied (Granite, Cohere), logits capped (Gemma)."""

from dataclasses import dataclass
from unittest.mock import patch  # swaps an attribute and puts it back

import torch
from transformers import PreTrainedModel

from coderepairrl.errors import ConfigError


@dataclass(frozen=True)
class LogitMap:
    """logits -> cap tanh(scale logits / cap), or scale logits where there is no cap (0)."""

    scale: float = 1.0
    cap: float = 0.0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Overwrites its argument."""
        if self.cap:
            return logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return logits if self.scale == 1.0 else logits.mul_(self.scale)

    def slope(self, mapped: torch.Tensor) -> torch.Tensor | float:
        """The derivative, at the logits that became `mapped`."""
        return self.scale * (1 - (mapped / self.cap).square()) if self.cap else self.scale


def logit_map(model: PreTrainedModel) -> LogitMap:
    """Asks the model's own forward pass, whose decoder and head are replaced by constants meanwhile: config.json
    doesn't
    say it (`logits_scaling` divides in some families and multiplies in others). Raises ConfigError for anything
    else."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    output = torch.ones(1, 1, head.weight.shape[1], dtype=torch.float64, device=head.weight.device)
    logits = torch.tensor([[[2.0**-20, -3.0, 1.0, 10.0, 2.0**40]]], dtype=torch.float64, device=head.weight.device)
    seen = []
    ids = torch.zeros(1, 1, dtype=torch.long, device=head.weight.device)
    with (
        torch.no_grad(),
        patch.object(decoder, "forward", lambda *_, **__: _Outputs([output])),
        patch.object(head, "forward", lambda hidden: seen.append(hidden) or logits),
    ):
        try:
            mapped = model(input_ids=ids, use_cache=False).logits[0, 0].double()
        except RuntimeError as error:  # layers that take no such numbers
            raise ConfigError(
                f"{model.config.model_type}: there is more than a linear layer behind its decoder: use another model"
            ) from error
    scale, largest = (mapped[0] / logits[0, 0, 0]).item(), mapped[-1].item()
    cap = largest if largest < 0.5 * scale * 2.0**40 else 0.0
    before = seen[0].flatten()[0].item()  # the head got its outputs multiplied
    same = torch.allclose(LogitMap(scale, cap)(logits[0, 0].clone()), mapped, rtol=1e-3) and (seen[0] == before).all()
    if not same:
        raise ConfigError(
            f"{model.config.model_type}: what it does to its logits is neither a scale nor a soft cap: "
            "use another model"
        )
    scale *= before
    return LogitMap(1.0 if abs(scale - 1.0) < 1e-6 else scale, cap)


class _Outputs(tuple):
    """Of a decoder: `last_hidden_state`, and nothing else that families put there."""

    last_hidden_state = property(lambda self: self[0])

    def __getattr__(self, name: str) -> None:
        return None
