"""What is to be shown, written down before the run: a YAML, copied into the run folder when the run is submitted.

    name: thesis
    criteria:
      verified: {benchmark: swe_bench_verified, at_least: 0.05}     a gain of five points over the baseline
      java: {benchmark: quixbugs_java}                              any measurable gain

A criterion is met when the paired difference reaches `at_least` and is no chance: Holm's p, corrected for all
comparisons that are made together, is below 0.05.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from coderepairrl.config import Config, load
from coderepairrl.errors import ConfigError
from coderepairrl.run.comparison import Comparison, power

LEVEL = 0.05
REGISTERED = "launch/criteria.yaml"  # in a run's folder: the file as it was at submission


@dataclass(frozen=True)
class Conclusion:
    met: bool
    words: str
    power: float | None  # of a missed one: the chance that so many tasks show the gain that was asked for


class Criterion(Config):
    """One claim about one benchmark."""

    benchmark: str  # the name of the evaluation's folder
    at_least: float = Field(0.0, ge=0, lt=1)  # of the paired difference of rates; 0: any measurable gain

    def words(self) -> str:
        return f"at least {100 * self.at_least:+.1f} points" if self.at_least else "any measurable gain"

    def verdict(self, found: Comparison, holm: float) -> Conclusion:
        """`holm`: the comparison's p-value after correction."""
        gain = found.difference.value
        if gain > 0 and gain >= self.at_least and holm < LEVEL:
            return Conclusion(True, "met", None)
        why = "no gain" if gain <= 0 else "too small" if gain < self.at_least else f"may be chance (p {holm:.2g})"
        asked = self.at_least or LEVEL
        possible = asked <= found.discordant
        chance = power(tasks=found.tasks, gain=asked, discordant=found.discordant) if possible else None
        return Conclusion(False, f"missed: {why}", chance)


class Criteria(Config):
    """The claims of one study."""

    name: str  # of the study
    criteria: dict[str, Criterion] = Field(min_length=1)


def read(path: Path) -> Criteria:
    """Raises ConfigError."""
    return load(Criteria, str(path))


def register(path: Path, run: Path) -> None:
    """Copies the criteria into a run's folder. Raises ConfigError where the run was submitted with others, or had begun
    without."""
    own, text = run / REGISTERED, path.read_bytes()
    if own.exists():
        if own.read_bytes() != text:
            raise ConfigError(
                f"criteria: {run} was submitted with others ({own}): what is to be shown is not changed after it was "
                "seen; give the grid another name"
            )
        return
    if (run / "rollouts").exists():
        raise ConfigError(f"criteria: {run} has begun without any: give the grid another name, or leave `criteria` out")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.with_name("criteria.yaml.tmp").write_bytes(text)
    own.with_name("criteria.yaml.tmp").rename(own)


def registrations(path: Path, folders: list[Path]) -> list[str]:
    """A line for each run in which, and above which, these criteria were not registered as they are now."""
    lines = []
    for folder in folders:
        for run in sorted(rollouts.parent for rollouts in folder.rglob("rollouts")):
            places = [run, *(above for above in run.parents if above.is_relative_to(folder))]
            own = next((place / REGISTERED for place in places if (place / REGISTERED).exists()), None)
            if own is None:
                lines.append(f"{run}: not registered when it was submitted (`criteria:` of a grid)")
            elif own.read_bytes() != path.read_bytes():
                lines.append(f"{run}: registered others ({own}) than {path} holds now")
    return lines
