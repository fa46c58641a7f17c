"""What a model costs, a part of bench_trainer.py: parameters, FLOPs and bytes of Qwen3's shapes."""

import math


def qwen3(
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    tied: bool,
    kv_heads: int = 8,
    head_dim: int = 128,
    vocabulary: int = 151_936,
) -> dict:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
    }


SHAPES = {
    "qwen3-1.7b": qwen3(2048, 28, 16, 6144, True),
    "qwen3-4b": qwen3(2560, 36, 32, 9728, True),
    "qwen3-8b": qwen3(4096, 36, 32, 12288, False),
    "tiny": qwen3(64, 2, 4, 128, True, 2, 16, 512),
}
LORA_RANK = 32


def parameters(shape: dict) -> tuple[int, int, int]:
    """(elements of the matrices of all layers, of the head, of LoRA's matrices)."""
    d, i, q = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"] * shape["head_dim"]
    kv = shape["num_key_value_heads"] * shape["head_dim"]
    matrices = [(d, q), (d, kv), (d, kv), (q, d), (d, i), (d, i), (i, d)]
    layers = shape["num_hidden_layers"]
    return (
        layers * sum(a * b for a, b in matrices),
        d * shape["vocab_size"],
        layers * LORA_RANK * sum(a + b for a, b in matrices),
    )


def flops(shape: dict, mode: str, tokens: int, trained: int, pairs: int) -> float:
    """As the docstring of bench_trainer.py says, for one forward and backward pass."""
    layers, head, adapters = parameters(shape)
    matrices = (6 if mode == "full" else 4) * (layers * tokens + head * trained) + (
        6 * adapters * tokens if mode == "lora" else 0
    )
    return matrices + 12 * shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"] * pairs


def state_bytes(shape: dict, mode: str, ranks: int) -> float:
    """Of one rank: bf16 weights, and for what is trained float32 weights, gradients and two moments."""
    layers, head, adapters = parameters(shape)
    whole = layers + head * (1 if shape["tie_word_embeddings"] else 2)
    return (2 * whole + 16 * (whole if mode == "full" else adapters)) / ranks


def recomputed_share(shape: dict, mode: str, tokens: int, ranks: int, gpu_bytes: int) -> float:
    """The smallest share of recomputed layers that fits. A layer keeps, in bf16, 4 d + 3 (q + kv) + 3 i values a token
    for backward, or its input (d)."""
    d, i, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    q, kv = (shape[name] * shape["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    kept = 2 * (4 * d + 3 * (q + kv) + 3 * i)
    workspace = 10e9 + 2 * kept * tokens  # logits, gathered layers and buckets; one layer's gradients
    room = 0.94 * gpu_bytes - state_bytes(shape, mode, ranks) - workspace - layers * 2 * d * tokens
    return 1 - min(layers, max(0, math.floor(room / ((kept - 2 * d) * tokens)))) / layers
