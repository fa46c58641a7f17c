"""Is it the machine? What ended episodes as infrastructure errors, and when they are too many for a run to go on.

RUN/infrastructure.json, there from the first error of an attempt on: {"errors": tries that failed, retried ones
included; "share" of the last "episodes" (at most WINDOW) that ended so after their retries; "cause": the commonest, in
its own words; "unforeseen", if there are any: of the program's own errors, kind -> how many}.
"""

import logging
import re
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from coderepairrl.errors import EngineError
from coderepairrl.files import ROOT, write_json
from coderepairrl.lines import one_line
from coderepairrl.types import Outcome, Trajectory

log = logging.getLogger(__name__)

WINDOW = 64  # episodes
LONGEST = 300  # characters of a cause
REMEDY = "mend the machine or the setting that it names, then start the same command again"


def alike(detail: str) -> str:
    """The detail less what tells two errors of one cause apart: words that hold a digit or a slash (numbers, ids,
    paths, addresses)."""
    return re.sub(r"\S*[\d/]\S*", "*", one_line(detail))


def commonest(details: Iterable[str]) -> str:
    """The cause that most of them share, as the first of them says it; one line."""
    details = [one_line(detail) or "no cause is known" for detail in details]
    kind = Counter(map(alike, details)).most_common(1)[0][0]
    return next(detail for detail in details if alike(detail) == kind)[:LONGEST]


def detail_of(trajectory: Trajectory) -> str | None:
    """None: the machine did not end it."""
    return trajectory.outcome_detail if trajectory.outcome == Outcome.INFRASTRUCTURE_ERROR else None


def refuse_broken(what: str, details: Sequence[str | None]) -> None:
    """details: of all of its episodes, as detail_of gives them. EngineError when there is not one that the machine did
    not end."""
    if details and None not in details:
        raise EngineError(
            f"{what}: all {len(details)} episodes ended as infrastructure errors, most often: {commonest(details)}; "
            f"{REMEDY}"
        )


def line(said: dict) -> str:
    """Of infrastructure.json, for people."""
    own = Counter(said.get("unforeseen", {}))
    most = ", ".join(kind for kind, _ in own.most_common(1))
    return (
        f"infrastructure errors {said['errors']} ({said['share']:.0%} of the last {said['episodes']} episodes), "
        f"most often: {said['cause']}"
    ) + (f"; {own.total()} of them this program's own, most often {most}: see rollout.log" if own else "")


class Unforeseen:
    """This program's own errors that ended an episode. counts: "KeyError at coderepairrl/grading/judge.py:77" -> how
    many."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def met(self, error: Exception, what: str) -> None:
        """The first of a kind is logged with its traceback; all are counted. what: that met it."""
        kind = f"{type(error).__name__} at {_origin(error)}"
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            said = "%s met what nobody foresaw, %s: send this to the developers; its like are counted from here on"
            log.error(said, what, kind, exc_info=error)


def _origin(error: Exception) -> str:
    """The innermost of this program's lines that it went through; of none, the innermost."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(path.relative_to(ROOT), line) for path, line in frames if path.is_relative_to(ROOT / "coderepairrl")]
    path, line = (own or frames)[-1]
    return f"{path}:{line}"


class InfrastructureErrors:
    """Of one attempt. most: the share of the last WINDOW episodes that may end so."""

    def __init__(self, run: Path, most: float):
        self.count = 0  # of tries
        self.unforeseen = Unforeseen()
        self._path, self._most = run / "infrastructure.json", most
        self._path.unlink(missing_ok=True)
        self._causes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}  # of a cause
        self._last: deque[str | None] = deque(maxlen=WINDOW)

    def tried(self, detail: str) -> None:
        """A try of an episode ended so; it may be repeated."""
        self.count += 1
        self._causes[alike(detail)] += 1
        self._examples.setdefault(alike(detail), commonest([detail]))

    def ended(self, trajectory: Trajectory) -> None:
        """An episode is over, after its retries. EngineError when too many of the last ones ended so."""
        self._last.append(detail_of(trajectory))
        broken = [detail for detail in self._last if detail is not None]
        if said := self.said():
            write_json(self._path, said)
        if len(self._last) == WINDOW and len(broken) > self._most * WINDOW:
            raise EngineError(
                f"{len(broken)} of the last {WINDOW} episodes ended as infrastructure errors, most often: "
                f"{commonest(broken)}; "
                f"{REMEDY} (rollout.max_infrastructure_share={self._most:g} is the bound)"
            )

    def said(self) -> dict | None:
        """infrastructure.json; None: nothing has failed yet."""
        if not self.count:
            return None
        cause = self._examples[self._causes.most_common(1)[0][0]]
        share = sum(detail is not None for detail in self._last) / max(1, len(self._last))
        said = {"errors": self.count, "share": round(share, 4), "episodes": len(self._last), "cause": cause}
        return said | ({"unforeseen": dict(self.unforeseen.counts)} if self.unforeseen.counts else {})
