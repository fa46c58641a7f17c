"""Run by test_weights.py under torchrun: a real engine and a Publisher, told what to do word by word; each rank writes
what it saw.

    torchrun --nproc-per-node N tests/programs/publish.py MODEL RUN WORD ...
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from coderepairrl.files import read_json, write_json
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.run.program import program
from coderepairrl.training import checkpoints
from coderepairrl.training.engine import Engine
from coderepairrl.training.engine_config import EngineConfig
from coderepairrl.weights.publisher import Publisher

model, run, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
breaks = words[-1] == "break" and words.pop()
torch.set_num_threads(1)
version = int(words.pop(0).removeprefix("version=")) if words[0].startswith("version=") else 0
engine = Engine(model, EngineConfig(learning_rate=1e-3, bucket_elements=10_000))
publisher = Publisher(
    engine, run, ServerConfig(dtype="float32", update_timeout_s=20.0, weight_backend="gloo"), version, export_every=100
)
layout, whole_buckets = engine.layout(), engine.buckets


def killing_buckets():
    """vLLM is killed before the middle one. Once: an export goes over the buckets, too."""
    engine.buckets = whole_buckets
    elements = sum(torch.Size(shape).numel() for _, _, shape in layout)
    seen, killed = 0, False
    for bucket in whole_buckets():
        if seen >= elements / 2 and not killed:
            killed = True
            if engine.rank == 0:
                os.killpg(read_json(run / "policy" / "engine_0.json")["pid"], signal.SIGKILL)
        seen += sum(tensor.numel() for _, tensor in bucket)
        yield bucket
    assert killed


rows = []
for word, _, value in (word.partition("=") for word in words):
    if word == "publish":
        publisher.publish()
    elif word == "kill":
        engine.buckets = killing_buckets
    elif word == "answer_wish":
        publisher.answer_wish()
    elif word == "checkpoint":
        publisher.checkpoint(int(value))
        if engine.rank == 0:
            checkpoints.prune(run, 1, awaited=lambda step: False)
    elif word == "server_is_back":
        while not (run / "server_is_back").exists():
            time.sleep(0.05)
    elif engine.rank == 0:
        write_json(
            run / "policy" / ("engine_0.json" if word == "server" else "export_wanted.json"), json.loads(value or "{}")
        )
    engine.sum([1.0])  # all ranks are here
    rows.append(
        {
            "word": word,
            "version": publisher.version,
            "updates": publisher.updates,
            "failed": publisher.failed,
            "current": read_json(run / "policy" / "current.json"),
            "exports": sorted(path.name for path in (run / "policy").glob("v0*")),
            "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        }
    )
    engine.sum([1.0])
(run / f"rank_{engine.rank}.json").write_text(json.dumps(rows))


@program
def end(arguments: list[str]) -> None:
    """The last word "break": rank 1 has a bug, and rank 0, which waits for it, loses it."""
    if breaks and engine.rank == 1:
        try:
            {}["a row"]
        except KeyError as error:
            raise ValueError("the batch\nis damaged") from error
    engine.sum([1.0])
    engine.close()


end(words)
