"""Families of models: packed rows equal the model's own forward pass, or the model is refused by name."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

from coderepairrl.errors import ConfigError
from coderepairrl.models.loading import load_config
from coderepairrl.models.logit_map import LogitMap
from coderepairrl.training import attention, equality
from coderepairrl.training.engine_config import LoRAConfig
from coderepairrl.training.model import LogprobHead, PolicyModel, recompute

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MUP = {"attention_multiplier": 0.05, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
WINDOW = {"sliding_window": 8}
HALF = {"layer_types": ["full_attention", "sliding_attention"]}
EQUAL = {
    "Llama": {},
    "Llama, tied": {"tie_word_embeddings": True},
    "Qwen2": {},
    "Qwen3": {},
    "Olmo2": {},
    "Gemma": {},
    "GPTNeoX": {},
    "Phi, a head with bias": {},
    "SmolLM3, a layer without positions": {"no_rope_layers": [1, 0]},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    # scaled logits and more
    "Granite": MUP | {"logits_scaling": 8.0},
    "GraniteMoe": MUP | {"logits_scaling": 6.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "HyperCLOVAX, multiplied by the same name": MUP | {"logits_scaling": 0.125},
    "Cohere": {"logit_scale": 0.0625},
    "Cohere2": WINDOW | HALF | {"logit_scale": 0.25},
    # capped logits
    "Gemma2, scores not capped": WINDOW | HALF | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": None},
    "NanoChat": {"final_logit_softcapping": 2.0},
    # sliding windows
    "Mistral": WINDOW,
    "Mixtral": WINDOW | {"num_local_experts": 4},
    "Phi3": WINDOW,
    "Starcoder2": WINDOW,
    "Ministral": WINDOW | HALF,
    "Qwen2, all sliding": WINDOW | {"use_sliding_window": True, "max_window_layers": 0},
    "Gemma3Text": WINDOW | HALF,
    # dropout
    "SeedOss": {"residual_dropout": 0.1, "attention_dropout": 0.1},
    "Starcoder2, dropout": {"residual_dropout": 0.1, "embedding_dropout": 0.1},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1, "layerdrop": 0.5},
    "GPT2": {},
    "Mixtral, noise in the router": {"num_local_experts": 4, "router_jitter_noise": 0.5},
}
REFUSED = {
    "Bloom": ({}, "a way of its own"),
    "Mpt": ({}, "a way of its own"),
    "Falcon": ({"alibi": True}, "a way of its own"),
    "Mamba": ({}, "a way of its own"),
    "StableLm": ({}, "a way of its own"),
    "Gemma2": ({}, "attn_logit_softcapping=50.0: .*soft cap on attention scores"),
    "Llama, dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, "=dynamic"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "layers of conv"),
    "T5": ({}, "an encoder with a decoder"),
    "Gemma3": ({"text_config": SHAPE}, "more than a language model"),
}


def a_model(family: str, options: dict) -> transformers.PreTrainedModel:
    config = getattr(transformers, family.partition(",")[0] + "Config")(**SHAPE | options)
    attention.check(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so large that every difference is seen
    return model


def difference(model: transformers.PreTrainedModel, lora: LoRAConfig | None = None, recomputed: bool = False) -> float:
    rows = equality.probe(model.config)
    micro = equality.packed(rows, equality.own(model, rows, CPU), model.config.hidden_size)
    policy = PolicyModel(model.train(), lora)
    if recomputed:
        recompute(model, 1.0)
    return equality.difference(micro, *(column.detach() for column in policy(micro, 1.0)))


@pytest.mark.parametrize("family", EQUAL)
def test_packed_rows_are_what_the_model_computes(family):
    assert difference(a_model(family, EQUAL[family])) < 2e-5


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_known_to_differ_is_refused_by_name_before_its_weights_are_read(family, tmp_path):
    options, cause = REFUSED[family]
    getattr(transformers, family.partition(",")[0] + "Config")(**options).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=cause) as refused:
        load_config(tmp_path)
    assert "\n" not in str(refused.value) and str(refused.value).endswith("use another model")


@pytest.mark.parametrize("family", ["OPT", "SeedOss", "Mistral", "GPT2"])
def test_layers_that_are_computed_again_in_backward_have_no_dropout_and_keep_their_windows(family):
    assert difference(a_model(family, EQUAL[family]), recomputed=True) < 2e-5


def test_adapters_that_were_just_made_change_nothing():
    assert difference(a_model("Llama", {}), LoRAConfig(rank=4), recomputed=True) < 2e-5


def test_the_check_fails_where_the_engine_computes_anything_else():
    """What no list knows: a forward pass of another kind, noise, and what is not a number."""
    model = a_model("Llama", {})
    rows = equality.probe(model.config)
    micro = equality.packed(rows, equality.own(model, rows, CPU), 32)
    bound, policy = equality.BOUND, PolicyModel(model, None)
    with torch.no_grad():
        assert equality.difference(micro, *policy(micro, 1.0)) < bound
        assert equality.difference(micro, *policy(micro, 0.9)) > bound
        logprobs, entropy = policy(micro, 1.0)
        assert equality.difference(micro, logprobs, entropy * 1.1) > bound
        logprobs[5] = float("nan")
        assert equality.difference(micro, logprobs, entropy) == float("inf")
        model.model.layers[1].self_attn.scaling *= 1.5
        assert equality.difference(micro, *policy(micro, 1.0)) > bound
    message = str(equality.refusal(LlamaConfig(residual_multiplier=0.1), 0.5, bound, 0.5))
    assert "0.5 nats" in message and "residual_multiplier=0.1" in message and "\n" not in message
    assert "other numbers each time" in str(equality.refusal(LlamaConfig(), 0.5, bound, 0.6))


def test_a_window_is_filled_by_the_rows_that_are_compared():
    config = a_model("Mistral", {"sliding_window": 300}).config
    assert max(len(row.token_ids) for row in equality.probe(config)) > 330
    assert max(len(row.token_ids) for row in equality.probe(LlamaConfig())) < 100


@pytest.mark.parametrize("found", [LogitMap(0.125), LogitMap(1.0, 3.0), LogitMap(4.0, 2.5)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scaled_and_capped_logits_have_exact_gradients(found, temperature):
    torch.manual_seed(0)
    N, d, V = 10, 6, 17
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    hidden, weight, bias = draw(N, d), draw(V, d), draw(V)
    ids, slopes = torch.randint(V, (N,)), torch.randn(N, dtype=torch.float64)
    head = LogprobHead(torch.nn.Parameter(weight), torch.nn.Parameter(bias), found)
    logprobs, entropy = head(hidden, ids, temperature)
    raw = (hidden @ weight.T + bias) * found.scale
    everything = ((found.cap * (raw / found.cap).tanh() if found.cap else raw) / temperature).log_softmax(-1)
    wanted = everything.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), -(everything.exp() * everything).sum(-1), atol=1e-5, rtol=1e-5)
    got = torch.autograd.grad((logprobs * slopes).sum(), [hidden, head.weight, head.bias])
    for gradient, exact in zip(got, torch.autograd.grad((wanted * slopes).sum(), [hidden, weight, bias]), strict=True):
        torch.testing.assert_close(gradient, exact, atol=2e-5, rtol=1e-4)
