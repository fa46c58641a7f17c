"""Whether a run's folder may be gone on with: the same inputs, or differences that are allowed; more steps than it has.

A finished run that gets more steps is unfinished again. What its end was is kept under the step's name:
    summary_step_00020.json  rollouts/eval_step_00020.parquet
"""

from itertools import chain, count
from pathlib import Path

from coderepairrl.config import Config
from coderepairrl.config.contents import there
from coderepairrl.errors import ConfigError
from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.run import inputs
from coderepairrl.tasks import load_tasks


class ResumeConfig(Config):
    """Going on in a folder whose results other settings have made."""

    # dotted keys or sections that may change although they change what is learnt; it is recorded
    allow: tuple[str, ...] = ()


def admit(config, run: Path) -> dict[str, list]:
    """What has changed since the last attempt, and may: key -> [before, now]; ConfigError for all else.

    Records what makes the run from here on.
    """
    before, done = read_json(run / inputs.RECORD), read_json(run / "summary.json")
    gone = done and not (Path(config.model) / "config.json").exists()
    tasks = load_tasks(config.rollout.tasks)
    now = inputs.of(config, inputs.TRAINING, tasks=tasks, model=None if gone else there(config.model))
    if gone:  # a finished run outlives the model that it began with
        model = {key: value for key, value in (before or {}).items() if key.startswith("model.")}
        now |= {key: value for key, value in model.items() if value["path"] == config.model}
    changed = inputs.compare(
        run / inputs.RECORD,
        now,
        inputs.TRAINING,
        config=config,
        made=made(run),
        allow=config.resume.allow,
        remedy="take another `run:` folder",
    )
    if done and config.training.steps < done["steps"]:
        raise ConfigError(
            f"{run}: done already, with {done['steps']} steps: training.steps={config.training.steps} "
            "would need another `run:` folder"
        )
    if not finished(run, config.training.steps):
        write_json(run / inputs.RECORD, now)
    return changed


def made(run: Path) -> bool:
    """Whether there is anything that other inputs would make otherwise."""
    patterns = ("rollouts/**/*.parquet", "checkpoints/step_*", "*.parquet", "summary.json")
    return any(path for pattern in patterns for path in run.glob(pattern))


def finished(run: Path, steps: int) -> bool:
    done = read_json(run / "summary.json")
    return done is not None and done["steps"] == steps


def keep_end(run: Path, step: int) -> None:
    """What an end at this step left gets the step's name. May be killed anywhere and done again."""
    own, kept = run / "rollouts" / "eval_after.parquet", _free(run / "rollouts" / f"eval_step_{step:05d}.parquet")
    # further passes of it first, as they were written
    for path in [*sorted(own.parent.glob("eval_after_*.parquet")), own]:
        if own.exists() and path.exists():
            _rename(run, path, kept.with_stem(path.stem.replace(own.stem, kept.stem, 1)))
    if (run / "summary.json").exists():
        (run / "summary.json").rename(_free(run / f"summary_step_{step:05d}.json"))


def _rename(run: Path, evaluation: Path, name: Path) -> None:
    digest = trajectory_files.sha256(evaluation)
    books = Ledger(run / "ledger.jsonl")
    for group in dict.fromkeys(trajectory.group_id for trajectory in trajectory_files.read(evaluation)[0]):
        books.write("stored", group, file=name.name, sha256=digest)
    books.close()
    evaluation.rename(name)


def _free(path: Path) -> Path:
    """`path`, or with a number where there is such a file: of a run that had gone further and was then ended here."""
    names = chain([path], (path.with_stem(f"{path.stem}_{number}") for number in count(2)))
    return next(name for name in names if not name.exists())
