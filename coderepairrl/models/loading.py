"""A Hugging Face folder -> its config, its model, its other files; or one line that says why it can't be trained."""

import json
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from coderepairrl.errors import ConfigError
from coderepairrl.lines import one_line
from coderepairrl.training import attention

# What a folder says besides weights: how text becomes ids, what is sampled by default. Copied into every export as it
# is.
OWN_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
    "*.jinja",
    "chat_template*",
    "additional_chat_templates/*",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "bpe.codes",
    "tekken.json",
    "*.py",
    "LICENSE*",
)
WEIGHTS = {".bin", ".safetensors", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack"}


def load_config(folder: str | Path) -> PretrainedConfig:
    """Raises ConfigError for a model of which it is known that packed rows are computed otherwise than by itself."""
    if not (Path(folder) / "config.json").exists():
        raise ConfigError(f"{folder}: no model there (no config.json): make it first, or correct the path")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"{folder}: transformers can't read its config.json: {one_line(error)[:300]}") from error
    kind = config.model_type
    refuse = lambda cause: ConfigError(f"{folder}: {kind}: {cause}: use another model")
    if config.is_encoder_decoder:
        raise refuse("an encoder with a decoder, no causal language model")
    if config.get_text_config() is not config:
        raise refuse("more than a language model (it has a text_config)")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refuse("transformers has no causal language model of this kind")
    if getattr(config, "quantization_config", None):
        raise refuse("its weights are quantized, which can't be trained")
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend:
        raise refuse("it computes attention in a way of its own (ALiBi, state spaces ...), which can't be replaced")
    attention.check(config)
    return config


def load_model(folder: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """In CPU memory. Raises ConfigError where the folder lacks a weight, which transformers would draw at random."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention.NAME, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder}: its weights can't be loaded: {one_line(error)[:300]}") from error
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"{folder}: its files lack {len(missing)} weights, the first is {missing[0]}: copy the whole "
            "folder, or correct config.json"
        )
    return model


def own_files(folder: str | Path) -> dict[str, bytes]:
    """Name in the folder -> content, of all its files that are not weights and belong to the model."""
    paths = {path for pattern in OWN_FILES for path in Path(folder).glob(pattern)}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and path.suffix not in WEIGHTS
    }


def write_own_files(files: dict[str, bytes], folder: Path, dtype: str) -> None:
    """To the byte, but that config.json names the dtype of the weights beside it, where it names one."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_with_dtype(content, dtype) if name == "config.json" else content)


def _with_dtype(config: bytes, dtype: str) -> bytes:
    entries = json.loads(config)
    for key in ("dtype", "torch_dtype"):
        if entries.get(key) not in (None, dtype):
            pattern = rf'("{key}"\s*:\s*)"{re.escape(entries[key])}"'
            config = re.sub(pattern.encode(), rf'\g<1>"{dtype}"'.encode(), config)
    return config
