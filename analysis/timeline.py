"""Draws what ran when: episodes being generated and graded, the trainer's waiting, training and weight updates.

    python analysis/timeline.py runs/quickstart [out=timeline.png]       -> runs/quickstart/timeline.png

Generation is coloured by the training step that consumes the episode, so that one sees how far rollouts run ahead of
the trainer;
the vertical lines are weights that go live under them. Groups that were dropped are in no file, and so not here.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from figure import ACCENT, INK, TEXT, runs_and_picture, save
from matplotlib.ticker import MaxNLocator

from coderepairrl.run.metrics import read_metrics
from coderepairrl.run.program import program

SOFT, HELDOUT = "#b9c7cf", "#dcdcd6"
STEPS = ("#35616e", "#659aa9", "#9dc1ca")  # of generation, step by step in turn
LANES = {"waiting for rollouts": SOFT, "training": INK, "weight update": ACCENT}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": INK,
    "axes.labelcolor": INK,
    "font.size": 9,
}
EVALUATION, UNCONSUMED = "held-out", "not yet trained"
Span = tuple[float, float]  # seconds: from, to


@dataclass(frozen=True)
class Episodes:
    """Of one training step, or of an evaluation."""

    generation: list[Span]
    grading: list[Span]


@dataclass(frozen=True)
class Timeline:
    """All times in seconds since `start` (the epoch)."""

    start: float
    episodes: dict[int | str, Episodes]  # training step, or EVALUATION or UNCONSUMED
    lanes: dict[str, dict[int, Span]]  # lane -> step -> when
    window: Span  # from the first training episode to the end of the last step

    def generation(self) -> list[Span]:
        """Of episodes for training: the stretches in which at least one ran."""
        return union(
            span for name, episodes in self.episodes.items() if name != EVALUATION for span in episodes.generation
        )

    def share(self, *activities: Iterable[Span]) -> float:
        """Share of the window in which all of the activities went on."""
        common = [self.window]
        for spans in activities:
            common = intersection(common, union(spans))
        return sum(end - begin for begin, end in common) / (self.window[1] - self.window[0])


def union(spans: Iterable[Span]) -> list[Span]:
    """Sorted and disjoint."""
    out: list[Span] = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        elif end > begin:
            out.append((begin, end))
    return out


def intersection(a: Sequence[Span], b: Sequence[Span]) -> list[Span]:
    """Of two unions."""
    return [(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b if max(x[0], y[0]) < min(x[1], y[1])]


def read_episodes(run: Path) -> dict[int | str, Episodes]:
    """Times since the epoch. Raises ValueError where a trajectory has no started_at."""
    out: dict[int | str, Episodes] = defaultdict(lambda: Episodes([], []))
    for path in sorted((run / "rollouts").rglob("*.parquet")):
        step = re.fullmatch(r"step_(\d+)", path.stem)
        table = pq.read_table(path, columns=["split", "stats"])
        for split, text in zip(table["split"].to_pylist(), table["stats"].to_pylist()):
            stats = json.loads(text)
            if "started_at" not in stats:
                raise ValueError(
                    f"{path}: its episodes don't say when they started: it is of a version that did not record that; "
                    "draw a newer run"
                )
            episodes = out[EVALUATION if split == "heldout" else int(step[1]) if step else UNCONSUMED]
            generated = stats["started_at"] + stats["generation_s"]
            episodes.generation.append((stats["started_at"], generated))
            episodes.grading.append((generated, generated + stats["grading_s"]))
    return dict(out)


def read_steps(run: Path) -> dict[str, dict[int, Span]]:
    """Lane -> step -> when, since the epoch. A step is waiting, training and weight update in this order, and then
    logged."""
    lanes: dict[str, dict[int, Span]] = {name: {} for name in LANES}
    for row in read_metrics(run / "metrics.jsonl"):
        end = row["time"]
        for name, key in reversed(list(zip(LANES, ("wait_for_rollouts_s", "train_s", "update_s")))):
            lanes[name][row["step"]] = (end - row[key], end)
            end -= row[key]
    return lanes


def load(run: Path) -> Timeline:
    """Raises ValueError with cause and remedy in one line."""
    episodes, lanes = read_episodes(run), read_steps(run)
    if not any(name != EVALUATION for name in episodes):
        raise ValueError(
            f"{run}/rollouts: no episodes for training there: give the folder of a run that has trained a step"
        )
    start = min(begin for group in episodes.values() for begin, _ in group.generation)

    def since(span: Span) -> Span:
        # what the trainer waited before the first episode is vLLM's start
        return max(0.0, span[0] - start), max(0.0, span[1] - start)

    episodes = {
        name: Episodes([since(s) for s in group.generation], [since(s) for s in group.grading])
        for name, group in episodes.items()
    }
    lanes = {name: {step: since(span) for step, span in spans.items()} for name, spans in lanes.items()}
    first = min(begin for name, group in episodes.items() if name != EVALUATION for begin, _ in group.generation)
    return Timeline(start, episodes, lanes, (first, max(end for _, end in lanes["weight update"].values())))


def running(spans: Sequence[Span], times: np.ndarray) -> np.ndarray:
    """How many of them are under way from each of the times on."""
    begins, ends = (np.sort([span[side] for span in spans]) for side in (0, 1))
    return np.searchsorted(begins, times, "right") - np.searchsorted(ends, times, "right")


def draw_running(axis, groups: dict[int | str, list[Span]], colours: dict[int | str, str], labelled: bool) -> None:
    """Stepped areas on top of each other, in order of steps; a number where a step's area is highest."""
    times = np.unique([edge for spans in groups.values() for span in spans for edge in span])
    below = np.zeros(len(times))
    peaks = []
    for name, spans in groups.items():
        counts = running(spans, times)
        inside = slice(*np.flatnonzero(counts)[[0, -1]] + (0, 2)) if counts.any() else slice(0)
        axis.fill_between(
            times[inside], below[inside], (below + counts)[inside], step="post", color=colours[name], linewidth=0
        )
        if counts.any() and labelled and isinstance(name, int):
            weight = counts[:-1] * np.diff(times)  # episodes x seconds: the label stands in the middle of the area
            place = min(int(np.searchsorted(np.cumsum(weight), weight.sum() / 2)), len(times) - 2)
            peaks.append(
                (str(name), (times[place] + times[place + 1]) / 2, below[place] + counts[place] / 2, counts.max())
            )
        below = below + counts
    axis.set_ylim(0, max(1.0, below.max() * 1.05))
    tallest = max((count for *_, count in peaks), default=1)
    for text, x, y, count in peaks:
        if count > tallest / 8:
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white", fontweight="bold")


def draw_trainer(axis, timeline: Timeline, length: float) -> None:
    """Bars in three lanes; the steps' numbers where there is room for them."""
    for place, (name, spans) in enumerate(reversed(timeline.lanes.items())):
        bars = [(begin, end - begin) for begin, end in spans.values() if end > begin]
        axis.broken_barh(bars, (place - 0.29, 0.58), facecolor=LANES[name], edgecolor=LANES[name], linewidth=0.6)
    last = -length
    for step, (begin, end) in timeline.lanes["training"].items():
        middle, width = (begin + end) / 2, length * 0.007 * len(str(step))  # of the number, in the picture
        if end - begin > 1.3 * width:
            axis.text(middle, 1, str(step), ha="center", va="center", fontsize=8, color="white", fontweight="bold")
        elif middle - last > 1.3 * width:
            axis.text(middle, 1.3, str(step), ha="center", va="bottom", fontsize=7, color=INK)
        else:
            continue
        last = middle
    axis.set_yticks(range(len(LANES)), list(reversed(LANES)))
    axis.set_ylim(-0.5, len(LANES) - 0.5)
    axis.tick_params(axis="y", length=0)


def title(figure, timeline: Timeline, run: Path) -> None:
    training, waiting = (timeline.lanes[name].values() for name in ("training", "waiting for rollouts"))
    steps, seconds = len(timeline.lanes["training"]), timeline.window[1] - timeline.window[0]
    both, waited = timeline.share(timeline.generation(), training), timeline.share(waiting)
    said = (
        f"{steps} steps in {seconds:.0f} s: generation and training overlapped {both:.0%} of the time, the trainer "
        f"waited {waited:.0%}"
    )
    figure.suptitle(f"{run.resolve().name}    {said}", fontsize=12, x=0.008, ha="left", color=INK)


def legend(axis, others: Sequence[str], colours: dict[int | str, str]) -> None:
    """Above the axes, at the right. others: what is generated, and not for a training step."""
    boxes = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (STEPS[0], *(colours[name] for name in others))]
    said = ["for a training step (its number)", *others, "new weights live"]
    axis.legend(
        [*boxes, plt.Line2D([], [], color=ACCENT, linewidth=1)],
        said,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(said),
        frameon=False,
        fontsize=9,
        borderaxespad=0.1,
        handlelength=1.2,
    )


def draw(timeline: Timeline, run: Path, path: Path) -> None:
    names = sorted((name for name in timeline.episodes if isinstance(name, int))) + [
        name for name in (UNCONSUMED, EVALUATION) if name in timeline.episodes
    ]
    colours = {
        name: STEPS[name % 3] if isinstance(name, int) else HELDOUT if name == EVALUATION else SOFT for name in names
    }
    length = max(end for group in timeline.episodes.values() for _, end in group.grading)
    length = max(length, timeline.window[1])
    with plt.rc_context(STYLE):
        figure, (generation, grading, trainer) = plt.subplots(
            3, 1, figsize=(16, 5.6), sharex=True, layout="constrained", height_ratios=[3, 1, 1.6]
        )
        draw_running(generation, {name: timeline.episodes[name].generation for name in names}, colours, labelled=True)
        draw_running(grading, {name: timeline.episodes[name].grading for name in names}, colours, labelled=False)
        draw_trainer(trainer, timeline, length)
        for _, end in timeline.lanes["weight update"].values():
            generation.axvline(end, color=ACCENT, linewidth=0.7, alpha=0.6)
        generation.set_ylabel("episodes\nbeing generated")
        grading.set_ylabel("being\ngraded")
        for axis in (generation, grading):
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        trainer.set_xlabel("seconds since the first episode began")
        trainer.set_xlim(0, length)
        title(figure, timeline, run)
        legend(generation, [name for name in names if name in (UNCONSUMED, EVALUATION)], colours)
        save(figure, path)


@program
def main(arguments: list[str]) -> None:
    (run, *others), path = runs_and_picture(arguments, __doc__, "timeline.png")
    if others:
        sys.exit(__doc__)
    try:
        timeline = load(run)
    except ValueError as error:
        sys.exit(f"error: {error}")
    draw(timeline, run, path)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
