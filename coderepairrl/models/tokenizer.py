"""The tokenizer of a model's folder, as its tokenizer.json has it."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Folders without a tokenizer.json are converted by transformers' AutoTokenizer, whose import takes ten times as
    long."""
    if (Path(folder) / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
