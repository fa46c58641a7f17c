"""What makes a step of the gradients: AdamW, or Muon for the layers' matrices and AdamW for the rest. Both are told of by EngineConfig."""
import torch

from coderepairrl.engine_config import EngineConfig
from coderepairrl.policy_model import PolicyModel, layers_of


def make(module: PolicyModel, config: EngineConfig) -> torch.optim.Optimizer:
    """For deepspeed.initialize, which partitions what it holds; Muon's matrices are gathered at each step."""
    adamw = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.muon is None:
        return torch.optim.AdamW(trained, fused=torch.cuda.is_available() or None, **adamw)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # compiles its kernels when it is imported

    # embeddings and heads are matrices by shape alone: a row of theirs is one token's
    matrices = {id(parameter) for layer in layers_of(module.model) for parameter in layer.parameters() if parameter.ndim == 2}
    for parameter in trained:
        parameter.use_muon = id(parameter) in matrices  # the mark that ZeRO-3 looks for
    muon = {"lr": config.muon.learning_rate, "momentum": config.muon.momentum, "weight_decay": config.weight_decay}
    return MuonWithAuxAdam([{"params": [p for p in trained if p.use_muon], "use_muon": True, **muon},
                            {"params": [p for p in trained if not p.use_muon], "use_muon": False, "eps": 1e-8, **adamw}], torch.optim.AdamW)


def learning_rate(group: dict, config: EngineConfig) -> float:
    """Of a parameter group that `make` made."""
    return config.muon.learning_rate if group.get("use_muon") else config.learning_rate
