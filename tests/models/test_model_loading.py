"""A model's own files, copied to the byte; what is no such file stays; folders that can't be loaded."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from coderepairrl.errors import ConfigError
from coderepairrl.models.loading import load_config, load_model, own_files, write_own_files
from coderepairrl.models.tokenizer import load_tokenizer

OWN = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "qwen.tiktoken",
    "spiece.model",
    "tokenization_kimi.py",
    "LICENSE",
]
OTHERS = [
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tokenizer.bin",
    "model.gguf",
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "trainer_state.json",
    "training_args.bin",
    "original/tokenizer.model",
    "README.md",
    ".cache/tokenizer.json",
]


def filled(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"number": number, "text": "ä \r\n"}, indent=number).encode()
        (folder / name).write_bytes(content + b"\r\n \xff"[: number % 4])
    return folder


@pytest.mark.parametrize("linked", [False, True])
def test_exports_hold_the_models_own_files_to_the_byte_and_no_others(tmp_path, linked):
    """Links: the hub's cache keeps files as links to blobs."""
    source = filled(tmp_path / "blobs", OWN + OTHERS)
    (source / "config.json").write_text('{"model_type":"llama" , "vocab_size": 3}')
    if linked:
        for name in OWN + OTHERS:
            (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "model" / name).symlink_to(source / name)
        source = tmp_path / "model"
    for folder in (tmp_path / "first", tmp_path / "second"):  # an export, and the export of an export
        folder.mkdir()
        write_own_files(own_files(source), folder, "float32")
        written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert written == set(OWN) and not any(path.is_symlink() for path in folder.rglob("*"))
        assert all((folder / name).read_bytes() == (tmp_path / "blobs" / name).read_bytes() for name in OWN)
        source = folder


def test_a_folder_that_lacks_a_file_does_not_get_one(tmp_path):
    source = filled(tmp_path / "model", ["tokenizer.json"])
    write_own_files(own_files(source), tmp_path, "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tokenizer.json"]


@pytest.mark.parametrize(
    "before, after",
    [
        ('{"torch_dtype":  "bfloat16",\n "x": ["bfloat16"]}', '{"torch_dtype":  "float32",\n "x": ["bfloat16"]}'),
        ('{"dtype":"float16"}\n', '{"dtype":"float32"}\n'),
        ('{"torch_dtype": null}', '{"torch_dtype": null}'),
        ('{"dtype": "float32", "y": "\\u00e9", "z": 1e-06}', '{"dtype": "float32", "y": "\\u00e9", "z": 1e-06}'),
        ('{"z": 1.0E-6}', '{"z": 1.0E-6}'),
    ],
)
def test_config_names_the_dtype_of_the_weights_beside_it_and_is_else_unchanged(tmp_path, before, after):
    write_own_files({"config.json": before.encode()}, tmp_path, "float32")
    assert (tmp_path / "config.json").read_text() == after


def test_a_tokenizer_of_a_class_that_says_otherwise_is_exported_as_it_is(policy, tmp_path):
    """transformers rebuilds what calls itself LlamaTokenizerFast: saved anew it would lose its spaces."""
    source = tmp_path / "model"
    shutil.copytree(policy, source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizerFast"}))
    (tmp_path / "export").mkdir()
    write_own_files(own_files(source), tmp_path / "export", "float32")
    text = "if a > 10:\n    return [b, c]\n"
    folders = (policy, source, tmp_path / "export")
    ids = [load_tokenizer(folder).encode(text, add_special_tokens=False) for folder in folders]
    assert ids[0] == ids[1] == ids[2] and load_tokenizer(tmp_path / "export").decode(ids[0]) == text


def a_folder(folder, change=lambda weights: None):
    shape = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=False))
    weights = model.state_dict()
    change(weights)
    model.save_pretrained(folder, state_dict=weights)
    return folder


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path):
    assert load_model(a_folder(tmp_path / "whole"), torch.float32).dtype == torch.float32
    lacking = a_folder(tmp_path / "lacking", lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ConfigError, match="lack 1 weights, the first is lm_head.weight"):
        load_model(lacking, torch.float32)
    (tmp_path / "whole" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="can't be loaded"):
        load_model(tmp_path / "whole", torch.float32)


@pytest.mark.parametrize(
    "config, cause",
    [
        (None, "no model there"),
        ("{", "can't read its config.json"),
        ('{"model_type": "nothing_known"}', "can't read its config"),
        ('{"model_type": "llama", "hidden_size": 30}', "can't read its config"),
        (
            '{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}',
            "weights are quantized",
        ),
    ],
)
def test_a_folder_that_holds_no_model_for_training_is_refused_in_one_line(tmp_path, config, cause):
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=cause) as refused:
        load_config(tmp_path)
    assert "\n" not in str(refused.value)
