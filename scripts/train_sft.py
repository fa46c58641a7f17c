"""Supervised fine-tuning on conversations and trajectories: the engine, batches and loop of reinforcement learning with
another loss.

    python scripts/train_sft.py configs/sft/small.yaml [a.b=c ...]

Sources, one after the other: `chat`, conversations in OpenAI's form (JSONL or Parquet; a teacher's export), and
`trajectories`, the rollouts
of a run, token-exact. The loss is on what the assistant says (weight 1) and, where `context_weight` says so, on the
rest. Writes a Hugging
Face folder OUTPUT, and beside it OUTPUT.inputs.json (what made it: other inputs need another `output:`),
sft_metrics.jsonl
and sft_summary.json.
First this process tokenises, then it becomes the ranks.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from coderepairrl.config import load
from coderepairrl.errors import CodeRepairError, ConfigError
from coderepairrl.files import read_json, write_json
from coderepairrl.processes.starting import become_ranks
from coderepairrl.run import inputs
from coderepairrl.run.intervals import NOTHING
from coderepairrl.run.metrics import Metrics
from coderepairrl.run.program import program
from coderepairrl.sft import ahead, dataset
from coderepairrl.sft.dataset import Rows
from coderepairrl.sft.sft_config import SFTConfig, inputs_of, record_of
from coderepairrl.training import batch, finite


def train(config: SFTConfig, prepared: Path) -> None:
    from coderepairrl.training.engine import Engine  # not before: the process that tokenises needs no DeepSpeed

    torch.set_num_threads(config.threads)
    if not (prepared / "books.json").exists():
        raise ConfigError(
            f"{prepared}: the tokenised rows aren't there: start this program itself, without a launcher; it becomes "
            "its ranks"
        )
    sources, heldout = load_rows(config, prepared)
    engine = Engine(config.model, config.engine)
    log = Log(engine, config, heldout)
    for micro_batches in ahead.steps(config, sources, engine.row_rank, engine.row_ranks, engine.hidden_size):
        for i, micro in enumerate(micro_batches):
            micro = micro.to(engine.device)
            logprobs, _ = engine.logprobs(micro, temperature=1.0)  # (N,)
            loss = -(logprobs * micro.advantages * micro.weights).sum()
            engine.backward(loss, last=i == len(micro_batches) - 1)
            log.add(micro, logprobs)
        log.check()
        gradient_norm, learning_rate = engine.step()
        log.write(gradient_norm, learning_rate)
    log.close(read_json(prepared / "books.json"))
    if engine.rank == 0:
        write_json(record_of(Path(config.output)), read_json(prepared / "inputs.json"))
    engine.export(Path(config.output))
    if engine.rank == 0:
        shutil.rmtree(prepared)
    engine.close()


class Log:
    """Numbers of a step: loss of the assistant's tokens (nats, mean), before the step; eval_loss the same of what is
    held out, after it."""

    def __init__(self, engine, config: SFTConfig, heldout: list[Rows]):
        self.engine, self.config, self.heldout, self.beside = engine, config, heldout, Path(config.output).parent
        self.tokens, self.row, self.evaluated = 0, {}, {}
        self.began = self.stepped = time.monotonic()
        self.sums = [0.0, 0.0, 0.0]  # loss, tokens in it, tokens of the rows
        if engine.rank == 0:
            (self.beside / "sft_metrics.jsonl").unlink(missing_ok=True)  # of an attempt that didn't come to an end
            self.metrics = Metrics(self.beside / "sft_metrics.jsonl", config.wandb, config.model_dump(mode="json"))
        steps = [source.steps for source in config.sources]
        self.bar = tqdm(
            total=None if None in steps else sum(steps),
            desc="fine-tuning",
            disable=engine.rank > 0,
            unit="step",
            mininterval=1,
        )
        if config.evaluation:
            self.evaluate()

    def add(self, micro: batch.MicroBatch, logprobs: torch.Tensor) -> None:
        if not self.engine.leads_row:
            return
        said = micro.advantages == 1.0
        self.sums[0] -= (logprobs.detach() * said).sum().item()
        self.sums[1] += said.sum().item()
        self.sums[2] += micro.token_ids.numel()

    def mean(self, name: str) -> tuple[dict[str, float], float]:
        """Collective, since the last call: ({name: loss} or {} where the assistant said nothing, tokens of the rows).

        Raises EngineError where the loss is not finite.
        """
        loss, count, tokens = self.engine.sum(self.sums)
        self.sums = [0.0, 0.0, 0.0]
        finite.demand(f"step {self.engine.steps}", {name: loss})
        return {name: loss / count} if count else {}, tokens

    def check(self) -> None:
        """Collective, before the step is taken: its loss is a number."""
        self.loss, self.step_tokens = self.mean("loss")

    def write(self, gradient_norm: float | None, learning_rate: float) -> None:
        self.tokens += int(self.step_tokens)
        now = time.monotonic()
        self.row = self.loss | {
            "learning_rate": learning_rate,
            "num_tokens": self.tokens,
            "trained_tokens_per_s": self.step_tokens / (now - self.stepped),
        }
        self.row |= {} if gradient_norm is None else {"grad_norm": gradient_norm}
        every = self.config.evaluation.every if self.config.evaluation else 0
        if every and self.engine.steps % every == 0:
            self.evaluate()
        elif self.engine.rank == 0:
            self.metrics.log(self.engine.steps, self.row)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in self.loss.items()}, refresh=False)
        self.bar.update()
        self.stepped = time.monotonic()

    def evaluate(self) -> None:
        engine, config = self.engine, self.config
        with torch.no_grad():
            for rows in self.heldout:
                for samples in dataset.steps(rows, config.batch_tokens, range(len(rows))):
                    for micro in batch.micro_batches(
                        samples,
                        [0.0] * len(samples),
                        config.micro_batch_tokens,
                        engine.row_rank,
                        engine.row_ranks,
                        hidden_size=engine.hidden_size,
                    ):
                        micro = micro.to(engine.device)
                        self.add(micro, engine.logprobs(micro, temperature=1.0)[0])
        loss, _ = self.mean("eval_loss")
        perplexity = {
            "eval_perplexity": torch.tensor(value, dtype=torch.float64).exp().item() for value in loss.values()
        }
        self.evaluated = {"step": engine.steps} | loss | perplexity
        finite.demand(f"step {engine.steps}", self.evaluated)
        if engine.rank == 0:
            self.metrics.log(engine.steps, self.row | self.evaluated)

    def close(self, books: dict) -> None:
        """After the last step; `books`: what became of the conversations."""
        if self.config.evaluation and self.evaluated["step"] < self.engine.steps:
            self.evaluate()
        self.bar.close()
        if self.engine.rank == 0:
            self.metrics.close()
            summary = (
                {"steps": self.engine.steps, "seconds": round(time.monotonic() - self.began, 1)}
                | self.row
                | self.evaluated
                | books
            )
            write_json(self.beside / "sft_summary.json", summary)
            held = (
                f"  eval_loss {summary['eval_loss']:.4f} (perplexity {summary['eval_perplexity']:.3f})"
                if "eval_loss" in summary
                else ""
            )
            loss = f"{summary['loss']:.4f}" if "loss" in summary else NOTHING
            print(
                f"{summary['steps']} steps, {summary['num_tokens']} tokens in {summary['seconds']} s: loss "
                f"{loss}{held}",
                flush=True,
            )


def load_rows(config: SFTConfig, prepared: Path) -> tuple[list[Rows], list[Rows]]:
    return dataset.load(prepared, len(config.sources), config.evaluation.share if config.evaluation else 0.0)


def prepare(config: SFTConfig, prepared: Path) -> None:
    """Tokenises all sources. Raises ConfigError where one has nothing to train, or nothing is held out."""
    evaluation = config.evaluation.sources if config.evaluation else []
    left_out = dataset.prepare(
        [*config.sources, *evaluation],
        prepared,
        config.model,
        config.context_weight,
        config.micro_batch_tokens,
        os.cpu_count() or 1,
    )
    trained, heldout = load_rows(config, prepared)
    for source, rows, reasons in zip(
        [*config.sources, *evaluation], [*trained, *heldout][: len(left_out)], left_out, strict=True
    ):
        if not rows:
            raise ConfigError(
                f"{source.path}: no conversation is left to learn from (left out: {json.dumps(reasons)}): "
                "correct the path, the filter or evaluation"
            )
    if config.evaluation and not any(heldout):
        raise ConfigError("evaluation.share: no conversation is held out: raise it, or name evaluation.sources")
    books = {
        "conversations_trained": sum(map(len, trained)),
        "conversations_held_out": sum(map(len, heldout)),
        "left_out": {
            source.path: reasons
            for source, reasons in zip([*config.sources, *evaluation], left_out, strict=True)
            if reasons
        },
    }
    print(json.dumps(books), flush=True)
    write_json(prepared / "books.json", books)


@program(SFTConfig)
def main(arguments: list[str]) -> None:
    config = load(SFTConfig, arguments[0], arguments[1:])
    output = Path(config.output)
    prepared = output.with_name(output.name + ".rows")
    if "RANK" not in os.environ:
        now = inputs_of(config)
        inputs.compare(
            record_of(output), now, inputs.SFT, config=config, made=output.exists(), remedy="take another `output:`"
        )
        if output.exists():
            print(f"{output}: already there")
            return
        try:
            prepare(config, prepared)
            write_json(prepared / "inputs.json", now)
        except CodeRepairError:
            shutil.rmtree(prepared, ignore_errors=True)
            raise
        become_ranks(config.ranks, config.threads)
    train(config, prepared)


if __name__ == "__main__":
    main(sys.argv[1:])
