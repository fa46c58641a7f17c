"""What a plan is refused for before anything is submitted, each in one line: results of two jobs in one folder, paths
where nothing is and no earlier job of the point makes it, folders whose results other settings made."""

import fnmatch
import os
from pathlib import Path
from typing import Any

from coderepairrl.cluster.grid import Point
from coderepairrl.cluster.plan import Submittable, config_class
from coderepairrl.config import contents, read_yaml
from coderepairrl.config.contents import model_folder, there
from coderepairrl.errors import ConfigError
from coderepairrl.files import ROOT, read_json
from coderepairrl.run import inputs, resume
from coderepairrl.sft.source_config import content, places
from coderepairrl.tasks import load_tasks

EVALUATE, TRAIN, SFT = "scripts/evaluate.py", "scripts/train_grpo.py", "scripts/train_sft.py"
RECORD = "scripts/record_demonstrations.py"
FREE = {EVALUATE: inputs.EVALUATION, TRAIN: inputs.TRAINING, SFT: inputs.SFT, RECORD: inputs.RECORDING}
OUTPUTS = ("run", "output", "out")
PATHS = (
    "*tasks.train",
    "*tasks.heldout",
    "*tasks.path",
    "*tasks.source",
    "*scaffold.path",
    "*scaffold.model",
    "*scaffold.requirements",
    "*scaffold.files.*",
    "*scaffold.agent.requirements",
    "*scaffold.agent.files.*",
    "*sandbox.image",
    "*server.key_file",
    "*sources.*.path",
)
DATA = (".jsonl", ".json", ".parquet")  # what a data set's source ends with, where it is a file and no name on the hub
SPLITS = ("train", "heldout")
WITHOUT_MODEL = ("gold", "empty", "gold_less_one_hunk", "predictions", "scripted")
Chains = list[tuple[Point, list[Submittable]]]


def check(chains: Chains) -> None:
    """Raises ConfigError."""
    owners: dict[str, str] = {}
    for point, chain in chains:
        made: list[Path] = []  # by the jobs before
        for job in chain:
            who, folders = f"{point.name}, job {job.planned.name}", _folders(job)
            for folder in folders:
                other = owners.setdefault(str(folder), who)
                if other != who or folders.count(folder) > 1:
                    other = other if other != who else "another of its shards"
                    raise ConfigError(
                        f"{who}: {other} writes {folder}, too: name the folder by {{run}}, of a further job "
                        "by {run}/JOB, of shards by their shard"
                    )
            _check_paths(who, job, [Path(chain[0].folder), *made] if job is not chain[0] else [])
            _check_inputs(who, job, folders)
            made += folders


def more_steps(job: Submittable, shard: int) -> str:
    """Why a training that is done is not; "" when it is."""
    done, config = read_json(job.runs[shard] / "summary.json"), job.configs[shard]
    if job.planned.config.program != TRAIN or not done or config["training"]["steps"] <= done["steps"]:
        return ""
    return f"done with {done['steps']} steps, training.steps={config['training']['steps']} asks for more"


def _folders(job: Submittable) -> list[Path]:
    """Where each of its shards leaves results, as far as its configuration says it."""
    found = []
    for one, config in zip(job.jobs, job.configs, strict=True):
        named = next((config[key] for key in OUTPUTS if isinstance((config or {}).get(key), str)), None)
        if named is None:
            continue
        folder = Path(os.path.abspath(ROOT / named))
        if job.planned.config.program == EVALUATE:  # as its folder_of
            shard = f"shard_{config['shard']}"
            if config["scaffold"] and folder.name != shard and Path(one.run) not in (folder, folder / shard):
                folder = folder.with_name(f"{folder.name}_{config['scaffold']['name']}")
            folder = folder if config["shards"] == 1 or folder.name == shard else folder / shard
        found.append(folder)
    return found


def _check_paths(who: str, job: Submittable, made: list[Path]) -> None:
    """made: folders of which something may be there only later."""
    later = lambda path: any(path.is_relative_to(folder) or folder.is_relative_to(path) for folder in made)
    for config in job.configs:
        model = (config or {}).get("model")
        if isinstance(model, str) and not _control(config) and not later(Path(os.path.abspath(ROOT / model))):
            try:
                (model_folder if job.planned.config.program == EVALUATE else there)(str(ROOT / model))
            except ConfigError as error:
                raise ConfigError(f"{who}: {error}") from None
        for key, value in inputs.flatten(config or {}).items():
            if not isinstance(value, str) or not any(fnmatch.fnmatch(key, pattern) for pattern in PATHS):
                continue
            if key.endswith("source") and not value.endswith(DATA):
                continue
            if not (ROOT / value).exists() and not later(Path(os.path.abspath(ROOT / value))):
                raise ConfigError(
                    f"{who}: {key}={value}: nothing is there, and no earlier job of the point makes it: "
                    "make it first, or correct the path"
                )


def _is_model(path: str) -> bool:
    return Path(path, "config.json").exists() or any(Path(path, "checkpoints").glob("step_*"))


def _control(config: dict[str, Any]) -> bool:
    scaffold = config.get("scaffold") or (config.get("rollout") or {}).get("scaffold") or {}
    return scaffold.get("name") in WITHOUT_MODEL


def _check_inputs(who: str, job: Submittable, folders: list[Path]) -> None:
    """What the settings name is hashed again only where they name something else; the job itself looks at all of it."""
    program = job.planned.config.program
    model = config_class(program)
    for one, config, folder in zip(job.jobs, job.configs, folders) if program in FREE and model else ():
        record = folder.with_name(f"{folder.name}.inputs.json") if program == SFT else folder / inputs.RECORD
        before, launched = read_json(record), Path(one.run, "launch", "config.yaml")
        if before is None or not (folder.is_dir() if program == SFT else resume.made(folder)):
            continue
        own = _alone(config) if program == EVALUATE else config
        before = inputs.completed(before, model.model_validate(own), FREE[program])
        now = inputs.of_settings(own, FREE[program])
        now |= _named(program, config, read_yaml(launched) if launched.exists() else {}, before)
        allowed = (*FREE[program], *(config.get("resume") or {}).get("allow", ()))
        refused = {
            key: pair
            for key, pair in inputs.differences(before, now).items()
            if not inputs.covered(key, allowed) and (key in now or not isinstance(before[key], dict))
        }
        if refused:
            way_on = ", or resume.allow in the job's overrides" if program == TRAIN else ""
            raise ConfigError(
                f"{who}: {folder} holds results of other settings: {inputs.said(refused)}: take another "
                f"`name:` of the grid, or what it was made with{way_on}"
            )


def _alone(config: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's settings as its inputs_of takes them: one scaffold, no shard."""
    scaffold = config["scaffold"] or config["rollout"]["scaffold"]
    return config | {"rollout": config["rollout"] | {"scaffold": scaffold}, "scaffold": None, "shard": 0}


def _named(program: str, config: dict[str, Any], launched: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Model, tasks and data, hashed, if they are named otherwise than when the results were made."""
    now, named = {}, config.get("model")
    if program == SFT:
        sft = config_class(program).model_validate(config)
        sources = places(sft.sources, sft.evaluation.sources if sft.evaluation else [])
        now |= {
            key: before[key] if (before.get(key) or {}).get("path") == source.path else content(source)
            for key, source in sources.items()
            if os.path.exists(source.path)
        }
    known = before.get("model.weights")
    if named and known and _is_model(named) and (folder := model_folder(named)) != known["path"]:
        now |= {key: value for key, value in contents.model(folder).items() if key in before}
    now |= inputs.weights(config) if "rollout.tasks.train" in before else {}
    splits = [split for split in SPLITS if f"rollout.tasks.{split}" in before]
    tasks = (config.get("rollout") or {}).get("tasks")
    if splits and launched and tasks != launched["rollout"]["tasks"]:
        found = load_tasks(config_class(program).model_validate(config).rollout.tasks)
        now |= {f"rollout.tasks.{split}": contents.tasks(found[split]) for split in splits}
    return now
