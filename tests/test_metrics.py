"""metrics.jsonl always; W&B, the real library, offline."""
import json

from coderepairrl.metrics import Metrics, WandbConfig


def test_lines_are_whole_at_once(tmp_path):
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl")
    metrics.log(0, {"loss": 1.5})
    metrics.log(1, {"loss": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]  # before close: nothing is buffered
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 1.5), (1, 0.5)] and all(row["time"] > 1e9 for row in rows)
    metrics.close()


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl", WandbConfig(project="test"), {"training": {"steps": 2}})
    metrics.log(0, {"loss": 1.5})
    metrics.close()
    records = list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))
    assert len(records) == 1 and records[0].stat().st_size > 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
