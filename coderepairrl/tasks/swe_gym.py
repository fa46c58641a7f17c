"""SWE-Gym and SWE-Gym-Lite: rows as SWE-bench's, without image, log parser and evaluation script.
https://arxiv.org/abs/2412.21139

    tasks: {name: swe_gym, source: SWE-Gym/SWE-Gym, split: train, use: train}
"""

from typing import Any, Literal

from coderepairrl.tasks import swe_bench
from coderepairrl.tasks.rows import RowsConfig, load_rows
from coderepairrl.types import Task


class SweGymConfig(RowsConfig):
    """SWE-Gym."""

    name: Literal["swe_gym"] = "swe_gym"
    split: str = "train"  # of a hub data set; a file has one
    use: Literal["train", "heldout"] = "train"  # what its tasks are for
    specifications: str | None = None  # folder of a clone of SWE-Gym/SWE-Bench-Fork; null: swebench==4.1.0, fetched
    hints: bool = False  # add the later comments to the problem statement


def load(config: SweGymConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    return load_rows(config, swe_bench.to_task, refused, image)


def image(fields: dict[str, Any]) -> dict[str, Any]:
    name = str(fields.get("instance_id")).lower().replace("__", "_s_")
    return {"image": f"docker://xingyaoww/sweb.eval.x86_64.{name}:latest"}
