"""A small Qwen3-architecture policy, made from nothing: tokenizer, chat template with tools, random weights.

The protocol's fixed pieces (tool-call JSON around the arguments) are single tokens, so that an action of the agent is
about
a dozen tokens, and the rest is a byte-level BPE trained on demonstrations. The result is an ordinary Hugging Face
folder.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from coderepairrl.config import Config
from coderepairrl.files import whole

END = "<|im_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", END]
PIECES = [
    '<tool_call>\n{"name": "shell", "arguments": {"command": "',
    '<tool_call>\n{"name": "edit", "arguments": {"path": "',
    '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>',
    '", "old": "',
    '", "new": "',
    '"}}\n</tool_call>',
    "\n<|im_start|>user\n<tool_response>\n",
    "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>\n",
    "\n</tool_response>",
    "<think>",
    "</think>",
]
# a line break with its indentation, words and operators with the space before them, single digits
SPLIT = r"\n +|\n| ?[A-Za-z_]+| ?\d| ?[^\s\w]+|\s"


class SmallPolicyConfig(Config):
    """A Qwen3 with random weights, and a tokenizer trained on its demonstrations."""

    vocabulary: PositiveInt = 768  # tokens, at most
    hidden_size: PositiveInt = 128  # width; a multiple of head_size
    layers: PositiveInt = 3  # blocks of attention and MLP
    head_size: PositiveInt = 32  # width of an attention head
    intermediate_size: PositiveInt = 384  # of the gated MLP
    context: PositiveInt = 2048  # tokens
    # sharper attention from the start: looking up text forms in fewer steps than with 1.0
    qk_norm_gain: PositiveFloat = 1.7
    seed: NonNegativeInt = 0  # of the weights


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(PIECES),
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in PIECES])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=SPECIAL[0],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (Path(__file__).with_suffix(".jinja")).read_text()
    return fast


def initial_model(tokenizer: PreTrainedTokenizerFast, config: SmallPolicyConfig) -> Qwen3ForCausalLM:
    """Random weights in fp32."""
    torch.manual_seed(config.seed)
    heads = config.hidden_size // config.head_size
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=config.head_size,
            max_position_embeddings=config.context,
            tie_word_embeddings=False,
            initializer_range=0.5 * config.hidden_size**-0.5,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    ).float()
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.data.fill_(config.qk_norm_gain)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    with whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
