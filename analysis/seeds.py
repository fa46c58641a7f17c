"""Several runs, one curve: runs of the same name up to _seedN."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from coderepairrl.config import read_yaml

SEED = re.compile(r"_?seed_?\d+$")
OWN = ("run", "model", "role", "wandb")  # sections of config.yaml that belong to one run and not to what was tried


def curve_name(run: Path) -> str:
    """quickstart_seed3 -> quickstart; a folder that is only called seed3 has its parent's name."""
    name = SEED.sub("", run.resolve().name)
    return name or run.resolve().parent.name


def curves_of(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Curve -> its runs, in the order in which they were given. Raises ValueError when a run was given twice."""
    curves: dict[str, list[Path]] = {}
    for run in runs:
        members = curves.setdefault(curve_name(run), [])
        if any(run.resolve() == other.resolve() for other in members):
            raise ValueError(f"{run} was given twice: an interval over seeds needs each run once")
        members.append(run)
    return curves


def grouped(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """`curves_of`, for a program: a mistake ends it in one line, and what differs beside the seed is said on stderr."""
    try:
        curves = curves_of(runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, members in curves.items():
        if found := differences(members):
            print(f"warning: the runs of {name} differ by more than the seed: {'; '.join(found)}", file=sys.stderr)
    return curves


def differences(runs: Sequence[Path]) -> list[str]:
    """Settings other than seeds in which runs of one curve differ: `a.b (1, 2)`. Such runs are not repetitions of each
    other."""
    configs = [_flat(read_yaml(run / "config.yaml")) for run in runs if (run / "config.yaml").exists()]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: list(dict.fromkeys(str(config.get(key)) for config in configs)) for key in keys}
    return [f"{key} ({', '.join(found)})" for key, found in values.items() if len(found) > 1]


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value, less seeds and what belongs to one run."""
    out = {}
    for key, value in tree.items():
        if key == "seed" or (not prefix and key in OWN):
            continue
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
