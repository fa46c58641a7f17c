"""Shared by the tests of supervised fine-tuning."""

from coderepairrl.sft import dataset


def prepared(source, folder, model, context_weight=0.0, longest=10_000):
    """(rows, what was left out)."""
    (left_out,) = dataset.prepare([source], folder, str(model), context_weight, longest, processes=1)
    (rows,), _ = dataset.load(folder, 1, 0.0)
    return rows, left_out
