"""The text that sbatch would get, on any machine: submitit's public interface writes it for an sbatch that only keeps
it."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOOLS = {"sbatch": "echo Submitted batch job 1", "srun": "exit 1"}  # as submitit looks for them


def batch_script(jobs: Sequence[Callable[[], Any]], parameters: dict[str, Any], python: str, folder: Path) -> str:
    """`jobs`: several are an array. `parameters`: of submitit's executor; `folder`: where it will keep its files."""
    from submitit import SlurmExecutor

    with tempfile.TemporaryDirectory() as place, _first_on_path(Path(place, "bin")):
        own = Path(place).resolve() / "job"
        executor = SlurmExecutor(own, python=python)
        executor.update_parameters(**parameters)
        if len(jobs) > 1:
            executor.submit_array(jobs)
        else:
            executor.submit(jobs[0])
        # of an array one for each of its jobs, all the same
        written = min(own.glob("*.sh"))
        return written.read_text().replace(str(own), str(folder))


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    folder.mkdir()
    for name, line in TOOLS.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    former = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{folder}:{former}"
    try:
        yield
    finally:
        os.environ["PATH"] = former
