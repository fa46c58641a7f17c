"""Chunked logprobs against all logits at once; LoRA's base, its merged weights, its targets."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Phi3Config

from coderepairrl.errors import ConfigError
from coderepairrl.training import attention, batch
from coderepairrl.training import model as policy_model
from coderepairrl.training.engine_config import LoRAConfig
from coderepairrl.training.model import LogprobHead, PolicyModel
from coderepairrl.types import Sample


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_entropy_and_gradients_are_those_of_all_logits(monkeypatch, chunk_rows, temperature):
    torch.manual_seed(0)
    N, d, V = 10, 6, 17
    monkeypatch.setattr(policy_model, "CHUNK_BYTES", 8 * V * chunk_rows)
    hidden, weight = (
        torch.randn(N, d, dtype=torch.float64, requires_grad=True),
        torch.nn.Parameter(torch.randn(V, d, dtype=torch.float64)),
    )
    ids, slopes = torch.randint(V, (N,)), torch.randn(N, dtype=torch.float64)
    logprobs, entropy = LogprobHead(weight)(hidden, ids, temperature)
    grads = torch.autograd.grad((logprobs * slopes).sum(), [hidden, weight])
    everything = (hidden @ weight.T / temperature).log_softmax(-1)
    wanted = everything.gather(1, ids[:, None])[:, 0]
    assert not entropy.requires_grad
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), -(everything.exp() * everything).sum(-1), atol=1e-5, rtol=1e-5)
    for got, exact in zip(grads, torch.autograd.grad((wanted * slopes).sum(), [hidden, weight]), strict=True):
        torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-4)


def test_no_trained_token_still_has_a_gradient_of_zero():
    """A rank without rows must take part in every collective of backward."""
    weight, hidden = torch.nn.Parameter(torch.randn(5, 4)), torch.randn(0, 4, requires_grad=True)
    logprobs, _ = LogprobHead(weight)(hidden, torch.zeros(0, dtype=torch.long), 1.0)
    logprobs.sum().backward()
    assert weight.grad.abs().sum() == 0


def a_micro_batch() -> batch.MicroBatch:
    ids = (5, 6, 7, 8, 9, 10)
    row = Sample("g", "t", 0, ids, tuple(range(6)), (0, 0, 1, 1, 1, 1), (0.0,) * 6, (1.0,) * 6, (0,) * 6)
    return batch.micro_batches([row], [1.0], 64, 0, 1, hidden_size=64)[0]


def test_lora_starts_as_the_base_moves_away_and_merges_into_what_is_published(policy):
    load = lambda: AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation=attention.NAME)
    plain, micro = PolicyModel(load(), None), a_micro_batch()
    adapted = PolicyModel(load(), LoRAConfig(rank=4, alpha=8.0))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    torch.testing.assert_close(adapted(micro, 1.0)[0], plain(micro, 1.0)[0])
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(std=0.1)
    moved = adapted(micro, 1.0)[0]
    assert (moved - plain(micro, 1.0)[0]).abs().max() > 1e-3
    with adapted.base():
        torch.testing.assert_close(adapted(micro, 1.0)[0], plain(micro, 1.0)[0])
    torch.testing.assert_close(adapted(micro, 1.0)[0], moved)  # and it is switched on again
    merged = {name: make(*(p.data for p in parameters)) for name, parameters, make in adapted.published()}
    assert merged.keys() == dict(plain.model.named_parameters()).keys()
    plain.model.load_state_dict(merged)
    torch.testing.assert_close(plain(micro, 1.0)[0], moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config, targets, refusal",
    [
        (
            Phi3Config,
            None,
            "q_proj, k_proj, v_proj, gate_proj, up_proj: no linear layer of phi3 .* choose among down_proj, gate_up",
        ),
        (Phi3Config, ["qkv_proj", "lm_head"], "lm_head: no linear layer"),
        (Phi3Config, ["qkv_proj", "embed_tokens"], "embed_tokens: no linear layer"),
        (GPT2Config, ["c_attn"], "c_attn: no linear layer of gpt2 .* train without lora"),
        (Phi3Config, ["qkv_proj", "self_attn.o_proj"], None),
    ],
)
def test_adapters_that_would_not_be_made_or_not_be_merged_are_refused(config, targets, refusal):
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    model = AutoModelForCausalLM.from_config(config(**shape, pad_token_id=0), attn_implementation=attention.NAME)
    lora = LoRAConfig(rank=2) if targets is None else LoRAConfig(rank=2, targets=targets)
    if refusal is None:
        trained = [name for name, p in PolicyModel(model, lora).named_parameters() if p.requires_grad]
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == {"qkv_proj", "o_proj"}
    else:
        with pytest.raises(ConfigError, match=f"engine.lora.targets: {refusal}"):
            PolicyModel(model, lora)
