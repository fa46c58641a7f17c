"""From a grid to jobs that can be submitted: the Job of each shard, its frozen configuration and code, the text of the
batch script.

    runs/GRID/code/HASH/      the project's files as they were: the jobs' working directory. The same content is there
                              once
    runs/GRID/POINT/          run folder of the point's first job; runs/GRID/POINT/JOB/ those of the others,
                              .../shard_K/ of their shards
        launch/               config.yaml, job.json: what slurm/job.py needs to start the same job by hand; and what
                              submission.py keeps
"""

import hashlib
import importlib
import shlex
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from coderepairrl.cluster.batch_script import batch_script
from coderepairrl.cluster.grid import GridConfig, PlannedJob, Point, expand
from coderepairrl.cluster.job import Job
from coderepairrl.cluster.site import SiteConfig, sbatch_parameters
from coderepairrl.config import Config, load, yaml_core
from coderepairrl.errors import ConfigError
from coderepairrl.files import ROOT, write_json, write_text
from coderepairrl.run import criteria

LARGEST_CODE = 256 * 2**20  # bytes
NO_CODE = {".git", ".venv", "runs", "wandb"}  # folders, where git can't say what is ignored
CLASSES = {  # program -> module and class of its configuration
    "scripts/train_grpo.py": ("coderepairrl.run.train_config", "TrainConfig"),
    "scripts/train_sft.py": ("coderepairrl.sft.sft_config", "SFTConfig"),
    "scripts/evaluate.py": ("coderepairrl.run.evaluate_config", "EvaluateConfig"),
    "scripts/record_demonstrations.py": ("coderepairrl.demonstrations.record_config", "RecordConfig"),
}


class _AnyConfig(Config):
    """Of a program whose own class isn't known: any keys."""

    model_config = ConfigDict(extra="allow", frozen=True)


@dataclass(frozen=True)
class Submittable:
    """One job of a point. Nothing is written before freeze()."""

    name: str  # in Slurm's queue
    folder: Path  # its run folder; of shards, the one above theirs
    planned: PlannedJob
    jobs: list[Job]  # one a shard
    configs: list[dict[str, Any] | None]  # what each job's config.yaml will hold
    criteria: str | None = None  # path of what is to be shown

    @property
    def launch(self) -> Path:
        return self.folder / "launch"

    @property
    def runs(self) -> list[Path]:
        return [Path(job.run) for job in self.jobs]

    def parameters(self, site: SiteConfig, after: list[str] = ()) -> dict[str, Any]:
        return sbatch_parameters(site, self.planned.config, self.name, self.folder, Path(self.jobs[0].code), after)

    def script(self, site: SiteConfig, after: list[str] = ()) -> str:
        """The text of the file that sbatch gets."""
        python = shlex.quote(self.jobs[0].python)
        return batch_script(self.jobs, self.parameters(site, after), python, self.launch)

    def freeze(self) -> None:
        """Writes config.yaml and job.json of each job; those of an earlier submission, if they were others, are kept
        with a number. Criteria are registered once, and never others. Raises ConfigError."""
        for job, config in zip(self.jobs, self.configs, strict=True):
            launch = Path(job.run) / "launch"
            launch.mkdir(parents=True, exist_ok=True)
            if self.criteria:
                criteria.register(Path(self.criteria), Path(job.run))
            path, text = launch / "config.yaml", yaml_core.dump(config)
            if path.exists() and path.read_text() != text:
                path.rename(launch / f"config_{sum(1 for _ in launch.glob('config_*.yaml'))}.yaml")
            if config is not None:
                write_text(path, text)
            write_json(launch / "job.json", job.model_dump())


class Plan:
    """All that a grid asks for. Its parts are read when they are needed; ConfigError for whatever is wrong. `local`: on
    this machine, without Slurm."""

    def __init__(self, grid: GridConfig, local: bool = False):
        self.grid, self.local = grid, local
        self.site = load(SiteConfig, ROOT / grid.site)
        self.folder = (ROOT / grid.runs / grid.name).absolute()
        self.points = expand(grid)

    def run(self, point: Point) -> str:
        return str(self.folder / point.name)

    @cached_property
    def files(self) -> list[str]:
        return code_files(ROOT)

    @cached_property
    def code(self) -> Path:
        return self.folder / "code" / content_hash(ROOT, self.files)

    def freeze_code(self) -> None:
        """Copies the project's files, unless the same are there; another launcher may be doing it, too."""
        if self.code.is_dir():
            return
        temporary = self.code.with_name(f"{self.code.name}.{uuid.uuid4().hex[:8]}.tmp")
        for file in self.files:
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, temporary / file, follow_symlinks=False)
        write_json(temporary / "revision.json", revision(ROOT))
        try:
            temporary.rename(self.code)
        except OSError:
            if not self.code.is_dir():
                raise
            shutil.rmtree(temporary)  # the other launcher's is the same

    def submittables(self) -> list[tuple[Point, list[Submittable]]]:
        """Checks every configuration, the interpreter and the images."""
        python, images = self.site.interpreter(), self.site.image_files()
        if self.grid.criteria:
            criteria.read(ROOT / self.grid.criteria)
        return [
            (point, [self._submittable(point, planned, python, images) for planned in point.jobs])
            for point in self.points
        ]

    def _submittable(self, point: Point, planned: PlannedJob, python: str, images: dict[str, str]) -> Submittable:
        wanted, run = planned.config, self.run(point)
        if not (ROOT / wanted.program).is_file():
            raise ConfigError(
                f"jobs.{planned.name}.program: {wanted.program} is no file of the project: give its path from the "
                "project's folder"
            )
        configs, jobs = [], []
        for shard in range(wanted.shards):
            folder = planned.shard_folder(run, shard)
            config, arguments = self._config(point, planned, run, shard)
            configs.append(config)
            jobs.append(
                Job(
                    program=wanted.program,
                    arguments=[f"{folder}/launch/config.yaml", *arguments] if wanted.config else arguments,
                    run=folder,
                    code=str(self.code),
                    python=python,
                    images=images,
                    environment=self.site.variables(),
                    container_options=self.site.options() if images else [],
                    serve_nodes=wanted.nodes.serve if wanted.nodes and not self.local else 0,
                    train_nodes=wanted.nodes.train if wanted.nodes and not self.local else 0,
                )
            )
        return Submittable(
            f"{self.grid.name}-{point.name}-{planned.name}",
            Path(planned.folder(run)),
            planned,
            jobs,
            configs,
            str(ROOT / self.grid.criteria) if self.grid.criteria else None,
        )

    def _config(
        self, point: Point, planned: PlannedJob, run: str, shard: int
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """(configuration as the program's own class resolves it, with paths that hold wherever the job runs; further
        arguments)."""
        try:
            overrides, arguments = planned.filled(run, shard)
            if planned.config.config is None:
                return None, self._absolute(arguments)
            words = [f"{key}={yaml_core.dump(value, flow=True)}" for key, value in overrides.items()]
            model = config_class(planned.config.program) or _AnyConfig
            tree = load(model, ROOT / planned.config.config, words).model_dump(mode="json")
        except ConfigError as error:
            raise ConfigError(f"{point.name}, job {planned.name}: {error}") from None
        if not (self.site.internet or self.local) and (tree.get("wandb") or {}).get("mode") == "online":
            raise ConfigError(
                f"{point.name}: wandb.mode=online, but this site's nodes have no internet: leave it offline, and use "
                "scripts/sync_wandb.sh"
            )
        return self._absolute(tree), self._absolute(arguments)

    def _absolute(self, value: Any) -> Any:
        """A job's working directory is its frozen code: paths to what is in the project's folder, but isn't code, are
        made absolute."""
        if isinstance(value, dict):
            return {key: self._absolute(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._absolute(inner) for inner in value]
        if (
            not isinstance(value, str)
            or not 0 < value.find("/")
            or value.startswith("-")
            or "\n" in value
            or len(value) > 500
        ):
            return value
        if value.rstrip("/") in self._code_paths:
            return value
        return str(ROOT / value) if value.startswith("runs/") or (ROOT / value).exists() else value

    @cached_property
    def _code_paths(self) -> set[str]:
        return {str(path) for file in self.files for path in (Path(file), *Path(file).parents)}


@cache
def config_class(program: str) -> type[Config] | None:
    """Class of a program's configuration; None when it isn't known, or this machine lacks what the program imports
    (said on stderr)."""
    if program not in CLASSES:
        return None
    module, name = CLASSES[program]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        print(f"the configurations of {program} are not checked here: {error}", file=sys.stderr)
        return None


def code_files(root: Path) -> list[str]:
    """Relative paths of what git tracks or would track; of a folder without git, of everything but results and
    environments."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-zco", "--exclude-standard"], capture_output=True, text=True
    )
    if listed.returncode == 0:
        files = [file for file in listed.stdout.split("\0") if file and (root / file).is_file()]
    else:
        paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        files = [str(path) for path in paths if not NO_CODE & set(path.parts) and "__pycache__" not in path.parts]
    sizes = {file: (root / file).stat().st_size for file in files}
    if sum(sizes.values()) > LARGEST_CODE:
        largest = max(sizes, key=sizes.get)
        raise ConfigError(
            f"the project's files are {sum(sizes.values()) / 2**20:.0f} MiB, the largest is {largest}: "
            "what is no code belongs in runs/ or .gitignore"
        )
    return sorted(files)


def content_hash(root: Path, files: list[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(
            f"{file}\0{(root / file).stat().st_mode & 0o100}\0".encode()
            + hashlib.sha256((root / file).read_bytes()).digest()
        )
    return digest.hexdigest()[:12]


def revision(root: Path) -> dict[str, Any]:
    """{"revision", "uncommitted"}: None where git doesn't know this folder."""

    def git(*words: str) -> str | None:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "uncommitted": None if status is None else bool(status)}
