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
and 4 P backward (2 P in backward where the matrix is frozen: LoRA needs no gradient of it), the language model head for
trained tokens only, embeddings none; for a query and a key that it sees 4 H D forward and 8 H D backward a layer (H
heads of size D). A causal row of T tokens has T (T + 1) / 2 such pairs. With full parameters that is the customary 6 N
a token plus attention. Memory a token is what the step adds to weights, gradients and optimizer state. TRL: one
process; the trajectories enter by its rollout_func, so that padding, splitting, loss, backward and optimizer are its
own; its weights and Adam's moments are bf16 (ours: float32); time is taken from the last reward to the end of the step.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from bench_trainer_batches import AgentConfig, agent_rows
from bench_trainer_ceiling import run_ceiling
from bench_trainer_engine import RowConfig, run_agent, run_rows
from bench_trainer_shapes import SHAPES, state_bytes
from pydantic import PositiveFloat, PositiveInt, field_validator

from coderepairrl.config import Config, load
from coderepairrl.files import write_json
from coderepairrl.processes import cause
from coderepairrl.processes.starting import has_gpu, ranks_command, ranks_environment
from coderepairrl.run.program import program
from coderepairrl.training.engine_config import EngineConfig

ROOT = Path(__file__).resolve().parent.parent


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
