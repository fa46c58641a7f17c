"""Speed and memory of the trainer on models with random weights, beside TRL's GRPOTrainer on the same batch.

    python benchmarks/bench_trainer.py [CONFIG] [a.b=c ...]      (configs/bench/trainer.yaml; without a GPU
                                                                 configs/bench/tiny.yaml)

What is measured, each case in processes of its own (a case that runs out of memory or time does not end the others):
    ceiling   TFLOP/s of a bf16 8192^3 matrix product on random data, the mean of 20
    rows      for every shape, mode and length: a row of one sequence a rank, all of it trained; forward and backward,
              and the optimizer step.
              With engine.sequence_ranks=P one row for P ranks; shares of the ceiling stay those of one GPU
    agent     a batch with the lengths of agents' trajectories: with shared prefixes, without, and in TRL's
              GRPOTrainer.train()
Written to OUT: results.json, table.md, one log a case.

FLOPs are the model's, with nothing that is computed twice: for a weight matrix of P elements and a token 2 P forward
and 4 P backward (2 P in
backward where the matrix is frozen: LoRA needs no gradient of it), the language model head for trained tokens only,
embeddings none; for a
query and a key that it sees 4 H D forward and 8 H D backward a layer (H heads of size D). A causal row of T tokens has
T (T + 1) / 2 such pairs.
With full parameters that is the customary 6 N a token plus attention. Memory a token is what the step adds to weights,
gradients and optimizer
state. TRL: one process; the trajectories enter by its rollout_func, so that padding, splitting, loss, backward and
optimizer are its own; its
weights and Adam's moments are bf16 (ours: float32); time is taken from the last reward to the end of the step.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from coderepairrl.config import Config, Share, load
from coderepairrl.files import write_json
from coderepairrl.processes import cause
from coderepairrl.processes.starting import has_gpu, ranks_command, ranks_environment
from coderepairrl.run.program import program
from coderepairrl.training.engine_config import EngineConfig, LoRAConfig
from coderepairrl.types import Sample

ROOT = Path(__file__).resolve().parent.parent


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


class AgentConfig(Config):
    """Groups of trajectories: a prompt that the group shares, then sampled tokens and tool outputs by turns."""

    shape: str  # one of coderepairrl/models/shapes.py
    mode: Literal["lora", "full"]  # what is trained
    groups: PositiveInt  # of the batch
    group_size: PositiveInt  # trajectories of each
    prompt_tokens: tuple[PositiveInt, PositiveInt]  # least and most, uniform
    median_completion: PositiveInt  # tokens, log-normal, tool outputs included
    spread: NonNegativeFloat  # sigma of its logarithm
    longest: PositiveInt  # tokens, prompt and completion
    row_tokens: PositiveInt  # of one packed row
    trl: bool  # measure TRL, too
    seed: NonNegativeInt = 0  # of the lengths


class RowConfig(Config):
    """One length that is measured."""

    tokens: PositiveInt  # of the row
    recomputed: Share | None = None  # share of the layers; null: the least that fits
    offload_activations: bool = False  # to CPU memory


class ShapeConfig(Config):
    """One model, at several lengths."""

    shape: str  # one of coderepairrl/models/shapes.py
    modes: list[Literal["lora", "full"]] = ["lora", "full"]  # what is trained
    rows: list[RowConfig]  # the lengths


class BenchConfig(Config):
    out: str  # the folder that is written
    agent: AgentConfig | None = None  # null: no batch of agents' trajectories
    shapes: list[ShapeConfig] = []  # of single rows
    measured_s: PositiveFloat  # steps are repeated for so long, after one that is not counted
    ranks: PositiveInt | None = None  # null: one for each GPU
    limit_s: PositiveFloat = 600.0  # of a case
    engine: dict = {}  # entries of EngineConfig for every case

    @field_validator("engine")
    @classmethod
    def _known(cls, entries: dict) -> dict:
        EngineConfig.model_validate({"learning_rate": 0.0} | entries)
        return entries


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
    """As the docstring of this program says, for one forward and backward pass."""
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


def row(index: int, ids: np.ndarray, mask: np.ndarray, group: str, vocabulary: int, advantage: float) -> Sample:
    logprobs = -math.log(vocabulary) * mask  # what a random model gives, nearly
    return Sample(
        group,
        f"t{index}",
        0,
        tuple(ids.tolist()),
        tuple(range(len(ids))),
        tuple(mask.tolist()),
        tuple(logprobs.tolist()),
        tuple((advantage * mask).tolist()),
        tuple((mask - 1).tolist()),
    )


def agent_rows(config: AgentConfig) -> list[Sample]:
    rng, vocabulary = np.random.default_rng(config.seed), SHAPES[config.shape]["vocab_size"]
    rows = []
    for group in range(config.groups):
        prompt = rng.integers(1, vocabulary, rng.integers(*config.prompt_tokens))
        for member in range(config.group_size):
            wanted = min(
                int(rng.lognormal(math.log(config.median_completion), config.spread)), config.longest - len(prompt)
            )
            mask = [np.zeros(len(prompt), dtype=np.int64)]
            while wanted > 0:
                sampled, answered = (
                    int(rng.lognormal(math.log(config.median_completion / of), 0.8)) + 1 for of in (40, 15)
                )
                mask += [
                    np.ones(min(sampled, wanted), dtype=np.int64),
                    np.zeros(max(0, min(answered, wanted - sampled)), dtype=np.int64),
                ]
                wanted -= sampled + answered
            mask = np.concatenate(mask)
            ids = np.concatenate([prompt, rng.integers(1, vocabulary, len(mask) - len(prompt))])
            rows.append(row(len(rows), ids, mask, f"g{group}", vocabulary, (-1) ** member))
    return rows


# ---- cases: each runs in its own processes and appends lines to its result file ----


class Trainer:
    """The engine of this project on one shape, and a step of it with a stopwatch."""

    def __init__(self, shape: str, mode: str, folder: Path, entries: dict):
        import torch

        from coderepairrl.training.algorithm_config import AlgorithmConfig
        from coderepairrl.training.engine import Engine

        self.torch, self.shape, self.mode = torch, SHAPES[shape], mode
        self.gpu = torch.cuda.is_available()
        entries = {
            "learning_rate": 1e-6,
            "dtype": "bfloat16" if self.gpu else "float32",
            "leaf_modules": ["Qwen3DecoderLayer"],
        } | entries
        self.engine = Engine(
            folder,
            EngineConfig(**entries, lora=LoRAConfig(rank=LORA_RANK) if mode == "lora" else None, random_weights=True),
        )
        self.algorithm = AlgorithmConfig(name="dapo")

    def now(self) -> float:
        if self.gpu:
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, micro_batches: list) -> tuple[float, float]:
        """Seconds of (forward and backward, optimizer step)."""
        from coderepairrl.training.algorithms import policy_loss

        start = self.now()
        for i, micro in enumerate(micro_batches):
            micro = micro.to(self.engine.device)
            logprobs, _ = self.engine.logprobs(micro, 1.0)
            out = policy_loss(self.algorithm, logprobs, micro.behaviour_logprobs, micro.advantages, micro.branches)
            self.engine.backward((out.losses * micro.weights).sum(), last=i == len(micro_batches) - 1)
        middle = self.now()
        self.engine.step()
        return middle - start, self.now() - middle

    def set_recomputed(self, tokens: int) -> float:
        """Recomputes as few layers as the memory allows for a row of so many tokens. Returns their share."""
        gpu_bytes = self.torch.cuda.get_device_properties(0).total_memory if self.gpu else 1e15
        share = recomputed_share(
            self.shape, self.mode, tokens // self.engine.config.sequence_ranks, self.engine.world_size, gpu_bytes
        )
        self.recompute(share)
        return share

    def recompute(self, share: float) -> None:
        from coderepairrl.training.model import recompute

        recompute(self.engine.module.model, share)

    def memory(self, reset: bool = False) -> tuple[float | None, float | None]:
        """GiB (now, at most since the last reset); None without a GPU."""
        if not self.gpu:
            return None, None
        if reset:
            self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated() / 2**30, self.torch.cuda.max_memory_allocated() / 2**30


def run_rows(case: dict, report) -> None:
    trainer = Trainer(case["shape"], case["mode"], Path(case["folder"]), case["engine"])
    for options in case["rows"]:
        report(
            run_row(trainer, RowConfig(**options), case["measured_s"]) | {"shape": case["shape"], "mode": case["mode"]}
        )
    trainer.engine.close()


def run_row(trainer: Trainer, options: RowConfig, measured_s: float) -> dict:
    from coderepairrl.training import batch

    engine, shape, tokens, rng = trainer.engine, trainer.shape, options.tokens, np.random.default_rng(0)
    share = trainer.set_recomputed(tokens) if options.recomputed is None else options.recomputed
    trainer.recompute(share)
    engine.config = engine.config.model_copy(update={"offload_activations": options.offload_activations})
    mask = np.ones(tokens, dtype=np.int64)
    rows = [
        row(r, rng.integers(1, shape["vocab_size"], tokens), mask, f"g{r}", shape["vocab_size"], 1.0)
        for r in range(engine.row_ranks)
    ]
    micro_batches = batch.micro_batches(
        rows,
        [1 / tokens / len(rows)] * len(rows),
        tokens,
        engine.row_rank,
        engine.row_ranks,
        hidden_size=engine.hidden_size,
    )
    trainer.step(micro_batches)
    state, _ = trainer.memory(reset=True)
    seconds = []
    until = engine.max([time.perf_counter() + measured_s])[0]
    while not seconds or engine.max([time.perf_counter()])[0] < until:
        seconds.append(trainer.step(micro_batches))
    forward_backward, step = np.median(seconds, axis=0).tolist()
    _, peak = trainer.memory()
    # of one GPU
    work = (
        flops(shape, trainer.mode, tokens, tokens - 1, tokens * (tokens + 1) // 2) / 1e12 / engine.config.sequence_ranks
    )
    return {
        "tokens": tokens,
        "ranks": engine.world_size,
        "sequence_ranks": engine.config.sequence_ranks,
        "recomputed": round(share, 3),
        "offload_activations": options.offload_activations,
        "pass_s": forward_backward,
        "step_s": step,
        "measured": len(seconds),
        "tokens_s": tokens * engine.row_ranks / (forward_backward + step),
        "tflops_pass": work / forward_backward,
        "tflops_step": work / (forward_backward + step),
        "peak_gib": peak,
        "mib_a_token": (peak - state) * 1024 / tokens if trainer.gpu else None,
    }


def run_agent(case: dict, report) -> None:
    from coderepairrl.training import batch
    from coderepairrl.training.algorithms import row_weights

    config = AgentConfig(**case["agent"])
    trainer = Trainer(config.shape, config.mode, Path(case["folder"]), case["engine"])
    engine, rows = trainer.engine, agent_rows(config)
    tokens, trained = sum(len(r.token_ids) for r in rows), sum(sum(r.loss_mask) for r in rows)
    share = trainer.set_recomputed(config.row_tokens)
    weights = row_weights("token", rows, 0)
    for shared in (True, False):
        make = lambda chosen, shared=shared: batch.micro_batches(
            chosen,
            weights[: len(chosen)],
            config.row_tokens,
            engine.row_rank,
            engine.row_ranks,
            hidden_size=engine.hidden_size,
            share_prefixes=shared,
        )
        trainer.step(make(rows[: config.group_size]))  # warm
        trainer.memory(reset=True)
        start = trainer.now()
        micro_batches = make(rows)
        packed = trainer.now() - start
        forward_backward, step = trainer.step(micro_batches)
        (computed,) = engine.sum([engine.leads_row * sum(m.token_ids.numel() for m in micro_batches)])
        _, peak = trainer.memory()
        seconds = packed + forward_backward + step
        report(
            {
                "trainer": "this one, shared prefixes" if shared else "this one, nothing shared",
                "ranks": engine.world_size,
                "trajectories": len(rows),
                "tokens": tokens,
                "trained_tokens": trained,
                "computed_tokens": int(computed),
                "micro_batches": len(micro_batches),
                "recomputed": round(share, 3),
                "seconds": seconds,
                "packing_s": packed,
                "step_s": step,
                "tokens_s": tokens / seconds,
                "peak_gib": peak,
            }
        )
    engine.close()


def run_ceiling(case: dict, report) -> None:
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    report(
        {
            "tflops": 20 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12,
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
        }
    )


def run_trl(case: dict, report) -> None:
    import bench_trl

    config = AgentConfig(**case["agent"])
    bench_trl.run(agent_rows(config), config.group_size, config.longest, case["folder"], case["attention"], report)


RUNS = {"ceiling": run_ceiling, "rows": run_rows, "agent": run_agent, "trl": run_trl}


# ---- the program: starts the cases, gathers what they report ----


def plan(config: BenchConfig, out: Path, ranks: int, gpu_bytes: float) -> tuple[list[dict], list[str]]:
    """(cases, what is left out and why)."""
    common = {"engine": config.engine, "measured_s": config.measured_s}
    cases, left_out = [], []
    if has_gpu():
        cases.append({"name": "ceiling", "run": "ceiling", "ranks": None})
    else:
        left_out.append("no GPU here: no matrix ceiling (and no share of it), no memory, no TRL")
    agent = config.agent
    if agent:
        case = common | {"agent": agent.model_dump(), "folder": str(out / "models" / agent.shape)}
        cases.append(case | {"name": "agent", "run": "agent", "ranks": ranks})
        if agent.trl and has_gpu() and ranks == 1:
            from transformers.utils import is_flash_attn_4_available

            cases.append(
                case
                | {
                    "name": "trl",
                    "run": "trl",
                    "ranks": None,
                    "attention": "flash_attention_4" if is_flash_attn_4_available() else "sdpa",
                }
            )
    for chosen, mode in ((chosen, mode) for chosen in config.shapes for mode in chosen.modes):
        needed = state_bytes(SHAPES[chosen.shape], mode, ranks)
        if has_gpu() and needed > 0.9 * gpu_bytes and not config.engine.get("offload_optimizer"):
            left_out.append(
                f"{chosen.shape} {mode}: {needed / 2**30:.0f} GiB of state on each of {ranks} GPUs: take more, or "
                "engine.offload_optimizer=true"
            )
            continue
        cases.append(
            common
            | {
                "name": f"{chosen.shape}_{mode}",
                "run": "rows",
                "ranks": ranks,
                "shape": chosen.shape,
                "mode": mode,
                "rows": [options.model_dump() for options in chosen.rows],
                "folder": str(out / "models" / chosen.shape),
            }
        )
    return cases, left_out


def run_case(case: dict, out: Path, limit_s: float) -> tuple[list[dict], str]:
    """(what it reported, why it ended early or "")."""
    arguments = [
        str(Path(__file__).resolve()),
        "--case",
        json.dumps(case | {"result": str(out / f"{case['name']}.jsonl")}),
    ]
    command = ranks_command(case["ranks"], arguments) if case["ranks"] else [sys.executable, *arguments]
    environment = ranks_environment(os.cpu_count() // (case["ranks"] or 1)) | {
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    result, log_file = (out / f"{case['name']}.{kind}" for kind in ("jsonl", "log"))
    result.unlink(missing_ok=True)
    with open(log_file, "w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(limit_s)
            why = "" if code == 0 else f"exit code {code}: {cause.of_log(log_file, code=code)}; see {log_file}"
        except subprocess.TimeoutExpired:
            why = f"over {limit_s:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, 9)
                child.wait()
    return [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else [], why


def table(results: dict[str, list[dict]]) -> str:
    """Markdown. A dash stands for what needs a GPU."""
    ceiling = results.get("ceiling", [{}])[0].get("tflops")
    shown = lambda value, digits=0, of=1: "-" if value is None or of is None else f"{value / of:.{digits}f}"
    line = lambda *cells: f"| {' | '.join(map(str, cells))} |"
    reports = [r for some in results.values() for r in some]
    columns = (
        "shape",
        "trained",
        "GPUs",
        "row",
        "recomputed",
        "tokens/s",
        "share, pass",
        "share, with step",
        "pass s",
        "step s",
        "peak GiB",
        "MiB a token",
    )
    lines = [f"matrix ceiling {shown(ceiling)} TFLOP/s", "", line(*columns), "|---" * 12 + "|"]
    shared = lambda r: f"{r['tokens']}{' on %d' % r['sequence_ranks'] if r['sequence_ranks'] > 1 else ''}"
    lines += [
        line(
            r["shape"],
            r["mode"],
            r["ranks"],
            shared(r),
            f"{r['recomputed']:.2f}{', offloaded' * r['offload_activations']}",
            shown(r["tokens_s"]),
            shown(r["tflops_pass"], 2, ceiling),
            shown(r["tflops_step"], 2, ceiling),
            shown(r["pass_s"], 3),
            shown(r["step_s"], 3),
            shown(r["peak_gib"], 1),
            shown(r["mib_a_token"], 3),
        )
        for r in reports
        if "pass_s" in r
    ]
    lines += [
        "",
        line("agent batch", "GPUs", "trajectories", "tokens", "computed", "seconds", "tokens/s", "peak GiB"),
        "|---" * 8 + "|",
    ]
    lines += [
        line(
            r["trainer"],
            r["ranks"],
            r["trajectories"],
            r["tokens"],
            r["computed_tokens"],
            shown(r["seconds"], 2),
            shown(r["tokens_s"]),
            shown(r["peak_gib"], 1),
        )
        for r in reports
        if "trainer" in r
    ]
    return "\n".join(lines)


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    out = Path(config.out)
    gpus = (
        [
            int(line)
            for line in subprocess.run(
                ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
        ]
        if has_gpu()
        else []
    )
    for name in {*(s.shape for s in config.shapes), *([config.agent.shape] if config.agent else [])}:
        (out / "models" / name).mkdir(parents=True, exist_ok=True)
        write_json(out / "models" / name / "config.json", SHAPES[name])
    cases, left_out = plan(config, out, config.ranks or max(1, len(gpus)), min(gpus, default=0) * 2**20)
    results: dict[str, list[dict]] = {}
    for case in cases:
        start = time.perf_counter()
        results[case["name"]], why = run_case(case, out, config.limit_s)
        print(
            f"{case['name']}: {time.perf_counter() - start:.0f} s {why}",
            *map(json.dumps, results[case["name"]]),
            sep="\n    ",
            flush=True,
        )
        left_out += [f"{case['name']}: {why}"] if why else []
        write_json(out / "results.json", {"config": config.model_dump(), "results": results, "left_out": left_out})
    text = "\n".join([table(results), "", *(f"left out: {line}" for line in left_out)])
    (out / "table.md").write_text(text + "\n")
    print(text)


def case_main(case: dict) -> None:
    def report(values: dict) -> None:
        if os.environ.get("RANK", "0") == "0":
            with open(case["result"], "a") as file:
                file.write(json.dumps(values) + "\n")

    RUNS[case["run"]](case, report)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        case_main(json.loads(sys.argv[2]))
    else:
        named = sys.argv[1:] and "=" not in sys.argv[1]
        main(
            sys.argv[1:]
            if named
            else [str(ROOT / "configs/bench" / ("trainer.yaml" if has_gpu() else "tiny.yaml")), *sys.argv[1:]]
        )
