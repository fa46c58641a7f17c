"""ZeRO-3 does what plain PyTorch does: same weights after the same steps, whatever the number of ranks; resume goes on exactly."""
import subprocess

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from coderepairrl.algorithms import token_logprobs
from coderepairrl.launch import ranks_command, ranks_environment


def run_engine(ranks: int, *arguments: str) -> None:
    result = subprocess.run(ranks_command(ranks, ["tests/programs/engine_steps.py", *arguments]), cwd=ROOT, env=ranks_environment(1), capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr


def plain_steps(path, count: int) -> dict[str, torch.Tensor]:
    """The reference: torch.optim.AdamW in one process, fp32, the whole batch at once."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(count):
        rows = torch.randint(20, 300, (8, 24), generator=torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 2)
        optimizer.zero_grad()
        logprobs, _ = token_logprobs(model(rows).logits, rows)
        (-logprobs.sum() / (8 * 23)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return {name: parameter.data for name, parameter in model.named_parameters()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_equal_plain_pytorch(policy, tmp_path, ranks):
    run_engine(ranks, str(policy), str(tmp_path / "out.safetensors"))
    start = {name: p.data for name, p in AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).named_parameters()}
    expected = plain_steps(policy, 3)
    assert largest_difference(start, expected) > 1e-3  # the steps do something
    assert largest_difference(load_file(tmp_path / "out.safetensors"), expected) < 2e-5


def test_resume_goes_on_exactly(policy, tmp_path):
    run_engine(2, str(policy), str(tmp_path / "first.safetensors"), "", str(tmp_path / "checkpoint"))
    run_engine(2, str(policy), str(tmp_path / "second.safetensors"), str(tmp_path / "checkpoint"))
    assert largest_difference(load_file(tmp_path / "second.safetensors"), plain_steps(policy, 6)) < 5e-5
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint" / "policy")
    first = load_file(tmp_path / "first.safetensors")
    assert largest_difference({n: p.data for n, p in exported.named_parameters()}, first) == 0.0
