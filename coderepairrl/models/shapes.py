"""Sizes of the Qwen3 family, for benchmarks that draw their weights: nothing is downloaded."""

from pathlib import Path

from transformers import Qwen3Config

from coderepairrl.models.small_policy import train_tokenizer

_QWEN3 = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
SHAPES = {  # as in the models' config.json
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 128,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": _QWEN3
    | {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
    "qwen3-1.7b": _QWEN3
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 6144,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": _QWEN3
    | {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 9728,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": _QWEN3
    | {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
}


def write_model(shape: str, folder: Path, context: int = 40960) -> Path:
    """A Hugging Face folder without weights: configuration and a tokenizer of single bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([], SHAPES[shape]["vocab_size"], context)
    tokenizer.save_pretrained(folder)
    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        max_position_embeddings=context,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **SHAPES[shape],
    ).save_pretrained(folder)
    return folder
