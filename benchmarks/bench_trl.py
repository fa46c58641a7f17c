"""TRL's GRPOTrainer on a fixed batch of trajectories with a stopwatch: a part of bench_trainer.py, which says what is
measured.

Imported only there where TRL is installed.
"""

import gc
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from coderepairrl.types import Sample


def run(rows: list[Sample], group_size: int, longest: int, folder: str, attention: str, report) -> None:
    """Two settings on two trajectories that are padded like the whole batch; then the faster one on all of it."""
    first = lambda r: r.loss_mask.index(1)
    # the longest prompt, the longest completion
    probe = [max(rows, key=first), max(rows, key=lambda r: len(r.token_ids) - first(r))]
    seconds = {}
    for checkpointing in (False, True):
        try:
            seconds[checkpointing] = optimizer_steps(probe, 2, group_size, longest, folder, attention, checkpointing)[
                0
            ][-1]
        except torch.OutOfMemoryError:
            print(f"gradient_checkpointing={checkpointing}: out of memory", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    best = min(seconds, key=seconds.get)
    torch.cuda.reset_peak_memory_stats()
    (step,), computed = optimizer_steps(rows, 1, group_size, longest, folder, attention, best)
    tokens = sum(len(r.token_ids) for r in rows)
    report(
        {
            "trainer": f"TRL, liger, {attention}, gradient_checkpointing={best}",
            "ranks": 1,
            "trajectories": len(rows),
            "tokens": tokens,
            "trained_tokens": sum(sum(r.loss_mask) for r in rows),
            "computed_tokens": computed,
            "seconds": step,
            "tokens_s": tokens / step,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "probes_s": {f"gradient_checkpointing={k}": v for k, v in seconds.items()},
        }
    )


def optimizer_steps(
    rows: list[Sample], steps: int, group_size: int, longest: int, folder: str, attention: str, checkpointing: bool
) -> tuple[list[float], int]:
    """(seconds of each optimizer step, tokens with padding): GRPOTrainer.train() on trajectories that its rollout_func
    hands over."""
    gpu = torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        dtype = torch.bfloat16 if gpu else torch.float32
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=dtype, attn_implementation=attention
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<eos>": 0, "x": 1}, "x")), eos_token="<eos>", pad_token="<eos>"
    )
    starts, ends, parts = [], [], [(r, r.loss_mask.index(1)) for r in rows]

    def now() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def replay(prompts: list[str], _) -> dict:
        return {
            "prompt_ids": [list(r.token_ids[:n]) for r, n in parts],
            "completion_ids": [list(r.token_ids[n:]) for r, n in parts],
            "env_mask": [list(r.loss_mask[n:]) for r, n in parts],
            "logprobs": None,
        }

    def reward(completions: list, **_) -> list[float]:
        starts.append(now())
        return [float(i % 2) for i in range(len(completions))]

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(now())

    group = min(group_size, len(rows))
    options = GRPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(rows),
        num_generations=group,
        max_steps=steps,
        bf16=gpu,
        use_cpu=not gpu,
        gradient_checkpointing=checkpointing,
        use_liger_kernel=gpu,
        optim="adamw_torch_fused" if gpu else "adamw_torch",
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        shuffle_dataset=False,
        max_completion_length=longest,
    )
    prompts = Dataset.from_dict({"prompt": ["x"] * (steps * len(rows) // group)})
    GRPOTrainer(
        model, reward, options, prompts, processing_class=tokenizer, callbacks=[Stopwatch()], rollout_func=replay
    ).train()
    padded = max(n for _, n in parts) + max(len(r.token_ids) - n for r, n in parts)
    return [end - start for start, end in zip(starts, ends, strict=True)], padded * len(rows)
