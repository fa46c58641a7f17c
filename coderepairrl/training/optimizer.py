"""What makes a step of the gradients: AdamW, or Muon for the layers' matrices and AdamW for the rest (EngineConfig)."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from coderepairrl.errors import ConfigError
from coderepairrl.training.engine_config import EngineConfig
from coderepairrl.training.model import PolicyModel, layers_of


def make(module: PolicyModel, config: EngineConfig) -> torch.optim.Optimizer:
    """For deepspeed.initialize, which partitions what it holds; Muon's matrices are gathered at each step.

    Raises ConfigError."""
    adamw = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    fused = torch.cuda.is_available() or None
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.muon is None:
        return torch.optim.AdamW(trained, fused=fused, **adamw)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # it brings the compiler with it

    matrices = _matrices(layers_of(module.model))
    for parameter in trained:
        parameter.use_muon = id(parameter) in matrices  # the mark that ZeRO-3 looks for
    muon = {"lr": config.muon.learning_rate, "momentum": config.muon.momentum, "weight_decay": config.weight_decay}
    groups = [
        {"params": [p for p in trained if p.use_muon], "use_muon": True, **muon},
        {"params": [p for p in trained if not p.use_muon], "use_muon": False, "eps": 1e-8, **adamw},
    ]
    return MuonWithAuxAdam(groups, torch.optim.AdamW, {"fused": fused})


def _matrices(layers: nn.ModuleList) -> set[int]:
    """Ids of the parameters that are matrices. Embeddings and heads, outside the layers, are so by shape alone: a row
    is one token's.

    Refused: what is a matrix in another shape, which Muon would leave to AdamW, or scale by the wrong side."""
    for name, module in layers.named_modules():
        if isinstance(module, Conv1D) or any(p.ndim > 2 for p in module.parameters(recurse=False)):
            kind = "a transposed matrix" if isinstance(module, Conv1D) else "a parameter of more than two dimensions"
            raise ConfigError(
                f"engine.muon: module {name} of the layers has {kind}, which Muon can't train here: leave muon out"
            )
    return {id(parameter) for parameter in layers.parameters() if parameter.ndim == 2}


def name(config: EngineConfig) -> str:
    """What a checkpoint says of its optimizer's state."""
    return "muon" if config.muon else "adamw"


def learning_rate(group: dict, config: EngineConfig) -> float:
    """Of a parameter group that `make` made."""
    return config.muon.learning_rate if group.get("use_muon") else config.learning_rate
