"""A grid of runs in one YAML: what varies, and the chain of jobs at each of its points. Pure: reads and writes nothing.

    name: rates
    site: configs/site/h100.yaml
    seeds: [0, 1]
    variants: {grpo: {}, dapo: {training.algorithm.name: dapo}}      # each point takes one of them
    product: {engine.learning_rate: [1.0e-6, 3.0e-6]}                # every combination
    zip: [{rollout.group_size: [8, 16], rollout.groups_per_step: [32, 16]}]     # walked together
    jobs:
      train: {program: scripts/train_grpo.py, config: configs/x.yaml, overrides: {run: "{run}", rollout.seed: "{seed}"},
      nodes: {serve: 1, train: 1}}
      evaluate: {program: scripts/evaluate.py, ..., shards: 4, after: train}

A matrix, policies x conditions, is the same with `under`: the job once under each condition; `variants` of a job: which
points have it, so that a policy that isn't trained is a row, too (configs/grid/matrix.yaml).

Keys of variants, product and zip are those of the first job's configuration; `evaluate:samples` is another job's. In
strings {seed}, {variant} (its name), {under} (of the condition), {run} (folder of the point), {shard} and {shards} are
filled in. Names of points
depend on nothing but their own values, so that a grid that grows keeps the runs that it has. A mapping in overrides or
variants is a section, merged; in product and zip, a value.
"""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from coderepairrl.cluster.site import Resources
from coderepairrl.config import Config
from coderepairrl.errors import ConfigError, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_STEM = 90  # characters of a point's name before its seed
PLACEHOLDERS = ("seed", "variant", "under", "run", "shard", "shards")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
UNDER = "_under_"  # between a job's name and its condition's
Overrides = dict[str, Any]  # dotted key -> value


def flatten(tree: dict[str, Any]) -> Overrides:
    """Nested mappings to dotted keys; what comes later wins, as `a.b=c` on the command line does."""
    out: Overrides = {}
    for key, value in tree.items():
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in PLACEHOLDERS and None in value.values():
            out[str(key)] = f"{{{next(iter(value))}}}"  # what YAML makes of {run} without quotes
        elif isinstance(value, dict) and value:
            out |= {f"{key}.{below}": inner for below, inner in flatten(value).items()}
        else:
            out[str(key)] = value
    return out


def flatten_each(trees: Any) -> Any:
    """Of named sets of overrides; what is none is left to pydantic to refuse."""
    if not isinstance(trees, dict):
        return trees
    return {name: flatten(tree or {}) if isinstance(tree or {}, dict) else tree for name, tree in trees.items()}


class JobConfig(Resources):
    """One job of each point of the grid."""

    program: str  # such as scripts/train_grpo.py
    # the YAML that it is given, in which {variant} and {under} are filled in; null: it takes arguments only
    config: str | None = None
    overrides: Overrides = {}  # of the configuration
    arguments: list[str] = []  # what follows the configuration
    shards: PositiveInt = 1  # so many jobs, one array; each with its own {shard}
    after: str | None = None  # the job that must end well before, where the point has it
    variants: list[str] | None = None  # whose points have this job; null: all
    # conditions, name -> overrides: the job once under each, named JOB_under_NAME
    under: dict[str, Overrides] = {}

    @field_validator("overrides", mode="before")
    @classmethod
    def _flat(cls, tree: Any) -> Any:
        return flatten(tree) if isinstance(tree, dict) else tree

    @field_validator("under", mode="before")
    @classmethod
    def _flat_under(cls, trees: Any) -> Any:
        return flatten_each(trees)

    def names(self, own: str) -> list[str]:
        """Of all jobs that it stands for; `own`: its name in the grid."""
        return [f"{own}{UNDER}{condition}" for condition in self.under] or [own]


class GridConfig(Config):
    """What varies, and the jobs at each point of it."""

    name: str  # of its folder below `runs`
    site: str = "configs/site/plain.yaml"  # the cluster's YAML
    runs: str = "runs"  # the folder of the grids' folders; on a cluster, on a file system that all nodes share
    # YAML of what is to be shown (coderepairrl/run/criteria.py): copied into each run's folder when it is submitted
    criteria: str | None = None
    seeds: list[NonNegativeInt] = Field([0], min_length=1)  # each point that uses {seed} is run with each
    variants: dict[str, Overrides] = {}  # name -> overrides of the first job; each point takes one
    product: dict[str, list[Any]] = {}  # key -> values: every combination
    zip: list[dict[str, list[Any]]] = []  # keys -> lists of values that are walked together
    jobs: dict[str, JobConfig] = Field(min_length=1)  # name -> job, in the order in which they run

    @field_validator("product", mode="before")
    @classmethod
    def _flat_product(cls, tree: Any) -> Any:
        return flatten(tree) if isinstance(tree, dict) else tree

    @field_validator("zip", mode="before")
    @classmethod
    def _flat_zip(cls, trees: Any) -> Any:
        return (
            [flatten(tree) if isinstance(tree, dict) else tree for tree in trees] if isinstance(trees, list) else trees
        )

    @field_validator("variants", mode="before")
    @classmethod
    def _flat_variants(cls, trees: Any) -> Any:
        return flatten_each(trees)


@dataclass(frozen=True)
class PlannedJob:
    """One submission of a point: `shards` jobs that differ in {shard} alone."""

    name: str
    config: JobConfig
    overrides: tuple[tuple[str, Any], ...]  # as in the grid, placeholders not yet filled in
    seed: int
    first: bool  # of its point: its folder is the point's
    variant: str = ""
    under: str = ""  # the condition

    def folder(self, run: str) -> str:
        return run if self.first else f"{run}/{self.name}"

    def shard_folder(self, run: str, shard: int) -> str:
        """The run folder of one of its jobs."""
        return self.folder(run) + (f"/shard_{shard}" if self.config.shards > 1 else "")

    def filled(self, run: str, shard: int) -> tuple[Overrides, list[str]]:
        """(overrides, arguments) of one of its jobs."""
        values = {"seed": self.seed, "variant": self.variant, "under": self.under}
        values |= {"run": run, "shard": shard, "shards": self.config.shards}
        return {key: fill(value, values) for key, value in self.overrides}, [
            str(fill(word, values)) for word in self.config.arguments
        ]


@dataclass(frozen=True)
class Point:
    name: str
    jobs: tuple[PlannedJob, ...]


def expand(grid: GridConfig) -> list[Point]:
    """ConfigError when two points have the same name, or something doesn't fit together."""
    _check(grid)
    axes = [[{key: value} for value in values] for key, values in grid.product.items()]
    zipped = [
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for columns in grid.zip
        if columns
    ]
    points: dict[str, Point] = {}
    shorts = _short_keys([*(key for columns in grid.zip for key in columns), *grid.product])
    for variant in grid.variants or {"": {}}:
        for chosen in itertools.product(*zipped, *axes):
            varied = {key: value for part in chosen for key, value in part.items()}
            own = grid.variants.get(variant, {}) | varied
            for seed in grid.seeds if _uses_seed(_chain(grid, variant, own, 0)) else [min(grid.seeds)]:
                name = _name(variant, {shorts[key]: value for key, value in varied.items()}, seed)
                if name in points:
                    raise ConfigError(
                        f"two runs of the grid are named {name}: a value or seed stands there twice, or two differ in "
                        "what a name can't show"
                    )
                points[name] = Point(name, _chain(grid, variant, own, seed))
    return list(points.values())


def _uses_seed(chain: tuple[PlannedJob, ...]) -> bool:
    """Else all seeds would be the same run, as of a policy that is only evaluated."""
    return "{seed}" in json.dumps([[job.overrides, job.config.arguments] for job in chain])


def _check(grid: GridConfig) -> None:
    conditions = [condition for job in grid.jobs.values() for condition in job.under]
    for name in (grid.name, *grid.jobs, *grid.variants, *conditions):
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} names a folder: take letters, digits, . _ - only")
    for columns in grid.zip:
        if len({len(values) for values in columns.values()}) > 1:
            raise ConfigError(
                "the lists of a zip are walked together: "
                + ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
            )
    for key, values in [*grid.product.items(), *(item for columns in grid.zip for item in columns.items())]:
        if not values:
            raise ConfigError(f"{key} has no values: give at least one, or leave it out")
    jobs = [[job.overrides, job.under, job.arguments] for job in grid.jobs.values()]
    varied = [grid.product, grid.zip, grid.variants, *jobs]
    if len(set(grid.seeds)) > 1 and "{seed}" not in json.dumps(varied):
        raise ConfigError(
            f"seeds={grid.seeds}: nothing uses {{seed}}, so all would be the same run: name it in the first "
            'job\'s overrides, for example rollout.seed: "{seed}"'
        )
    keys = [*grid.product, *(key for columns in grid.zip for key in columns)]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key} varies in two places of the grid: which one is meant?")
    _check_jobs(grid)


def _check_jobs(grid: GridConfig) -> None:
    earlier: list[str] = []
    names: set[str] = set()
    for name, job in grid.jobs.items():
        if earlier and job.after not in earlier:
            raise ConfigError(
                f"jobs.{name}.after={job.after}: jobs stand in the order in which they run, so name one of "
                f"{', '.join(earlier)}"
            )
        if not earlier and job.after:
            raise ConfigError(f"jobs.{name}.after={job.after}: the first job waits for none")
        if job.after and grid.jobs[job.after].under:
            raise ConfigError(f"jobs.{name}.after={job.after}: that is one job a condition: wait for what it waits for")
        if (job.overrides or job.under) and not job.config:
            raise ConfigError(f"jobs.{name}: overrides of which configuration? Name its YAML (config)")
        if job.shards > 1 and job.nodes:
            raise ConfigError(f"jobs.{name}: shards are jobs of one node each: leave out nodes")
        for variant in job.variants or ():
            if variant not in grid.variants:
                remedy = did_you_mean(variant, grid.variants, f"known are {', '.join(grid.variants)}", written=str)
                raise ConfigError(f"jobs.{name}.variants: there is no variant {variant!r}: {remedy}")
        if same := names.intersection(job.names(name)):
            raise ConfigError(f"jobs.{name}: two jobs are named {same.pop()}: rename one")
        names.update(job.names(name))
        earlier.append(name)
    for variant, overrides in grid.variants.items():
        own = [name for name, job in grid.jobs.items() if _has(job, variant)]
        if not own:
            raise ConfigError(f"variants.{variant}: no job is for it: name it in a job's variants")
        for key in overrides:
            owner = key.rpartition(":")[0] or next(iter(grid.jobs))
            if owner in grid.jobs and owner not in own:
                raise ConfigError(f"variants.{variant}: {key} is of the job {owner}, which {variant} does not have")


def _has(job: JobConfig, variant: str) -> bool:
    return job.variants is None or variant in job.variants


def _chain(grid: GridConfig, variant: str, varied: Overrides, seed: int) -> tuple[PlannedJob, ...]:
    first, *_ = grid.jobs
    own: dict[str, Overrides] = {name: dict(job.overrides) for name, job in grid.jobs.items()}
    for key, value in varied.items():
        job, colon, rest = key.rpartition(":")
        job = job if colon else first
        if job not in own:
            remedy = did_you_mean(job, own, f"known are {', '.join(own)}", written=lambda name: f"{name}:{rest}")
            raise ConfigError(f"{key}: there is no job {job!r}: {remedy}")
        own[job].pop(rest, None)
        own[job][rest] = value
    return tuple(
        planned
        for name, job in grid.jobs.items()
        if _has(job, variant)
        for planned in _under_each(name, _waiting(grid, job, variant), own[name], seed, name == first, variant)
    )


def _waiting(grid: GridConfig, job: JobConfig, variant: str) -> JobConfig:
    """It waits for what the point has alone."""
    waits = job.after is None or _has(grid.jobs[job.after], variant)
    return job if waits else job.model_copy(update={"after": None})


def _under_each(name: str, job: JobConfig, own: Overrides, seed: int, first: bool, variant: str) -> list[PlannedJob]:
    """A job once under each of its conditions, whose overrides win."""
    planned = []
    for own_name, condition in zip(job.names(name), job.under or [""], strict=True):
        config = fill(job.config, {"variant": variant, "under": condition})
        overrides = tuple(merged(own, job.under.get(condition, {})).items())
        one = job.model_copy(update={"config": config})
        planned.append(PlannedJob(own_name, one, overrides, seed, first and not condition, variant, condition))
    return planned


def merged(own: Overrides, nearer: Overrides) -> Overrides:
    """What is nearer comes last, where it wins."""
    return {key: value for key, value in own.items() if key not in nearer} | nearer


def fill(value: Any, values: dict[str, Any]) -> Any:
    """A string that is one placeholder becomes its value, a number stays a number. ConfigError names a placeholder that
    isn't known."""
    if isinstance(value, dict):
        return {key: fill(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, values) for inner in value]
    if not isinstance(value, str):
        return value
    for found in PLACEHOLDER.findall(value):
        if found not in values:
            remedy = did_you_mean(found, values, f"known are {', '.join(values)}", written="{{{}}}".format)
            raise ConfigError(f"{value!r}: {{{found}}} is not known: {remedy}")
    whole = PLACEHOLDER.fullmatch(value)
    return values[whole[1]] if whole else PLACEHOLDER.sub(lambda match: str(values[match[1]]), value)


def _short_keys(keys: list[str]) -> dict[str, str]:
    """As many last parts of each key as tell it from the others."""
    out = {}
    for key in keys:
        parts = re.split(r"[.:]", key)
        tails = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [re.split(r"[.:]", other) for other in keys if other != key]
        out[key] = next(
            (tail for tail in tails if all(".".join(other[-tail.count(".") - 1 :]) != tail for other in others)), key
        )
    return out


def _name(variant: str, varied: dict[str, Any], seed: int) -> str:
    parts = [variant] if variant else []
    parts += [f"{key}_{_short(value)}" for key, value in varied.items()]
    stem = "-".join(parts) or "run"
    if len(stem) > LONGEST_STEM:
        stem = f"{stem[: LONGEST_STEM - 9]}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    return f"{stem}_seed{seed}"  # analysis/ takes what differs in _seedN alone for seeds of one thing


def _short(value: Any) -> str:
    """Of a path its last part; of a list or mapping a few characters of its hash."""
    if isinstance(value, (list, dict)):
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if isinstance(value, bool | None) else f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", PurePosixPath(text).name or "_")
