"""The program of supervised fine-tuning, with one rank and with two."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, once, run_program
from transformers import AutoModelForCausalLM

from coderepairrl.models.loading import own_files
from coderepairrl.run.metrics import read_metrics
from coderepairrl.sft import dataset
from coderepairrl.sft.source_config import ChatSource


def start(folder, policy, jsonl, name: str, ranks: int) -> subprocess.Popen:
    (folder / name).mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(
        json.dumps(
            {
                "model": str(policy),
                "output": str(folder / name / "policy"),
                "sources": [{"path": str(jsonl), "steps": 10}],
                "ranks": ranks,
                "seed": 3,
                "evaluation": {"share": 0.2, "every": 4},
                "batch_tokens": 1024,
                "context_weight": 0.25,
                "engine": {"learning_rate": 3e-3, "warmup_steps": 2},
            }
        )
    )
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "scripts/train_sft.py", str(folder / f"{name}.yaml")],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def runs(policy, jsonl, tmp_path_factory):
    """{ranks: folder}."""

    def make(folder):
        for ranks, name in ((1, "one"), (2, "two")):
            process = start(folder, policy, jsonl, name, ranks)
            assert process.wait(timeout=300) == 0 and "eval_loss" in (folder / f"{name}.log").read_text(), (
                folder / f"{name}.log"
            ).read_text()

    folder = once(tmp_path_factory, "sft_runs", make)
    return {1: folder / "one", 2: folder / "two"}


@pytest.mark.whole
def test_it_learns_and_says_so(runs):
    for folder in runs.values():
        rows = read_metrics(folder / "sft_metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(11))
        assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4, 8, 10]
        losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 1.0
        assert rows[-1]["loss"] < rows[1]["loss"] - 1.0
        assert all({"grad_norm", "learning_rate", "num_tokens"} <= row.keys() for row in rows[1:])
        summary = json.loads((folder / "sft_summary.json").read_text())
        assert (
            summary["eval_loss"] == losses[-1]
            and summary["steps"] == 10
            and summary["num_tokens"] == rows[-1]["num_tokens"] <= 10 * 1024
        )
        assert summary["conversations_trained"] + summary["conversations_held_out"] == 120
        assert sorted(path.name for path in folder.iterdir()) == [
            "policy",
            "policy.inputs.json",
            "sft_metrics.jsonl",
            "sft_summary.json",
        ]


def test_two_ranks_do_what_one_does(runs):
    one, two = (read_metrics(runs[ranks] / "sft_metrics.jsonl") for ranks in (1, 2))
    for name in ("loss", "grad_norm", "eval_loss", "learning_rate", "num_tokens"):
        assert [row[name] for row in one if name in row] == pytest.approx(
            [row[name] for row in two if name in row], rel=2e-3
        ), name


def test_transformers_loads_the_policy_and_finds_the_same_loss(runs, policy, jsonl, tmp_path):
    dataset.prepare([ChatSource(path=str(jsonl))], tmp_path / "rows", str(policy), 0.25, 10_000, 1)
    _, (held,) = dataset.load(tmp_path / "rows", 1, 0.2)
    model = AutoModelForCausalLM.from_pretrained(runs[2] / "policy")
    loss, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(held)):
            (sample,) = held[i]
            ids, said = torch.tensor([sample.token_ids]), torch.tensor(sample.advantages[1:]) == 1.0
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            loss, count = loss - logprobs[said].sum().item(), count + said.sum().item()
    summary = json.loads((runs[2] / "sft_summary.json").read_text())
    assert loss / count == pytest.approx(summary["eval_loss"], abs=1e-4) and np.exp(loss / count) == pytest.approx(
        summary["eval_perplexity"], rel=1e-3
    )
    assert own_files(runs[2] / "policy") == own_files(policy)  # tokenizer, chat template and settings, to the byte


def test_a_finished_run_is_left_alone_and_a_mistake_starts_no_ranks(runs, jsonl):
    folder = runs[1].parent
    before = (runs[1] / "sft_summary.json").read_text()
    again = run_program("scripts/train_sft.py", str(folder / "one.yaml"))
    assert (
        again.returncode == 0
        and again.stdout.strip() == f"{runs[1] / 'policy'}: already there"
        and (runs[1] / "sft_summary.json").read_text() == before
    )
    other = run_program("scripts/train_sft.py", str(folder / "one.yaml"), "engine.learning_rate=0.5", "threads=2")
    assert (
        other.returncode == 1
        and "engine.learning_rate" in other.stderr
        and "-> 0.5: take another `output:`" in other.stderr
        and "threads" not in other.stderr
    )
    wrong = run_program(
        "scripts/train_sft.py",
        str(folder / "one.yaml"),
        f"output={folder / 'new'}",
        "sources=[{path: nowhere.jsonl, steps: 3}]",
    )
    assert (
        wrong.returncode == 1
        and wrong.stderr.splitlines()[-1].startswith("error: nowhere.jsonl: no such file")
        and "Traceback" not in wrong.stderr
    )
    assert not (folder / "new").exists()
