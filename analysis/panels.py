"""The panels of a picture of runs: which numbers each shows, and how it is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from figure import ACCENT, COLOURS, INK, SOFT, TEXT
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter, PercentFormatter
from series import Curve, Run

from coderepairrl.run.intervals import Interval, mean, mean_rate

OUTCOMES = {
    "submitted": "#4a7c8c",
    "turn_limit": "#e0a458",
    "token_limit": "#c8553d",
    "time_limit": "#8e5572",
    "agent_error": "#6b705c",
    "infrastructure_error": "#20303c",
}
SECONDS = {
    "wait_for_rollouts_s": ("waiting for\nrollouts", SOFT),
    "train_s": ("training", INK),
    "update_s": ("weight update", ACCENT),
}


@dataclass(frozen=True)
class Panel:
    """keys are added up."""

    title: str
    keys: tuple[str, ...]
    percent: bool = False
    logarithmic: bool = False
    floor: float = 0.0  # magnitudes up to this are nothing to see

    def values(self, rows: Sequence[dict]) -> list[float]:
        """NaN where a step has none."""
        return [sum(row.get(key, math.nan) for key in self.keys) for row in rows]

    def drawn(self, runs: Sequence[Run]) -> bool:
        return all(any(key in row for row in run.rows) for key in self.keys for run in runs) and any(
            abs(value) > self.floor for run in runs for value in self.values(run.rows)
        )


PASS_RATE = Panel("tasks repaired", ("pass_rate",), percent=True)
PANELS = (
    Panel("reward", ("reward",)),
    Panel("groups whose rewards are all equal", ("frac_reward_zero_std",), percent=True),
    Panel("loss", ("loss",), floor=1e-5),
    Panel("entropy of sampled tokens (nats)", ("entropy",)),
    Panel("gradient norm, before clipping", ("grad_norm",)),
    Panel("tokens clipped", ("clip_ratio/low_mean", "clip_ratio/high_mean"), percent=True),
    Panel("KL to the reference policy (nats)", ("kl",)),
    Panel("staleness of trained tokens (steps, mean)", ("staleness_mean",)),
    Panel("largest |logprob trainer \N{MINUS SIGN} vLLM| (nats)", ("logprob_gap",), logarithmic=True),
    Panel("model calls an episode", ("calls_per_episode",)),
    Panel("sampled tokens an episode", ("completions/mean_length",)),
)
HELD_OUT = (
    Panel("repaired", ("eval/pass_rate",), percent=True),
    Panel("by the first edit", ("eval/first_edit",), percent=True),
    Panel("greedy", ("eval/greedy",), percent=True),
)
SUBMITTED = Panel("episodes that the agent submitted", ("submitted",), percent=True)
STEP_SECONDS = Panel("seconds of a step", ("step_s",))


def band(values: Sequence[float], panel: Panel) -> Interval:
    """Over the seeds that have a value; on a logarithmic axis of the logarithms, since an interval must not reach below
    0 there, and where 0 has no place (in older runs a gap of 0 says that a step had no tokens to measure it on). Of
    none: all NaN."""
    there = [value for value in values if not math.isnan(value) and (value > 0 or not panel.logarithmic)]
    if not there:
        return Interval(math.nan, math.nan, math.nan)
    if panel.logarithmic:
        return Interval(*map(math.exp, mean([math.log(value) for value in there])))
    return (mean_rate if panel.percent else mean)(there)


def lines(axis, curves: Sequence[Curve], panel: Panel, colour: str | None = None) -> None:
    for curve in curves:
        by_seed = [panel.values(curve.rows(run)) for run in curve.runs]
        means, lows, highs = zip(*(band(values, panel) for values in zip(*by_seed, strict=True)), strict=True)
        if len(curve.runs) > 1:
            axis.fill_between(curve.steps, lows, highs, color=curve.colour, alpha=0.18, linewidth=0)
        alone = len(curve.steps) == 1 or any(map(math.isnan, means))  # a point between gaps is on no line
        axis.plot(
            curve.steps, means, color=colour or curve.colour, linewidth=1.7, marker="o" if alone else None, markersize=3
        )
    axis.set_title(panel.title)
    if panel.logarithmic:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        # LogLocator thins out decades by itself, but not what lies between them
        subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.yaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(10, 10)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    if panel.percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axis.set_ylim(bottom=0)


def evaluations(axis, curve: Curve, colour: str) -> bool:
    """Held-out tasks beside training, at the steps that all of its runs were evaluated at: of one run over tasks, of
    several over seeds."""
    steps = sorted(set.intersection(*(set(run.evaluations) for run in curve.runs)))
    for step in steps:
        rows = [run.evaluations[step] for run in curve.runs]
        value, low, high = mean_rate([row["eval/pass_rate"] for row in rows])
        if len(rows) == 1:
            low, high = rows[0]["eval/pass_rate_low"], rows[0]["eval/pass_rate_high"]
        ends = None if math.isnan(low) else [[value - low], [high - value]]  # seeds that are equal have no interval
        axis.errorbar([step], [value], yerr=ends, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.2)
    return bool(steps)


def held_out(axis, curves: Sequence[Curve], panels: Sequence[Panel]) -> None:
    """Evaluations as lines, at the steps that all runs of a curve were evaluated at. Of one curve several numbers, of
    several one."""
    entries = []
    for curve in curves:
        steps = sorted(set.intersection(*(set(run.held_out) for run in curve.runs)))
        for panel, colour in zip(panels, COLOURS if len(panels) > 1 else (curve.colour,), strict=False):
            by_seed = [panel.values([run.held_out[step] for step in steps]) for run in curve.runs]
            means, lows, highs = zip(*(band(values, panel) for values in zip(*by_seed, strict=True)), strict=True)
            if len(curve.runs) > 1:
                axis.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
            axis.plot(steps, means, color=colour, linewidth=1.7, marker="o", markersize=3.5)
            entries.append((means[-1], panel.title.replace(" first ", "\nfirst "), colour))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axis.set_ylim(bottom=0)
    if len(panels) > 1:
        name_at_the_right(axis, entries)
        axis.set_title("held-out tasks: skill is what the first edit does")
    else:
        axis.set_title(f"held-out tasks, {panels[0].title}")


def measured(curves: Sequence[Curve]) -> list[Panel]:
    """Numbers of evaluations that all runs of each curve have at two steps or more."""

    def steps(curve: Curve, panel: Panel) -> set[int]:
        return set.intersection(
            *({step for step, row in run.held_out.items() if panel.keys[0] in row} for run in curve.runs)
        )

    return [panel for panel in HELD_OUT if all(len(steps(curve, panel)) > 1 for curve in curves)]


def pass_rate(axis, curves: Sequence[Curve]) -> None:
    """Training tasks at each step, and the held-out tasks before, beside and after: of one run over tasks, of several
    over seeds."""
    lines(axis, curves, PASS_RATE, colour=SOFT if len(curves[0].runs) == len(curves) == 1 else None)
    first, last = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)
    room = max(1.0, (last - first) / 12)
    tasks, beside = set(), False
    for place, curve in enumerate(curves):
        beside |= evaluations(axis, curve, ACCENT if len(curves) == len(curve.runs) == 1 else curve.colour)
        summaries = [run.summary for run in curve.runs if run.summary and "pass_rate_before" in run.summary]
        if len(summaries) < len(curve.runs):
            continue  # not all of its runs are finished, or they were not evaluated
        tasks |= {summary["heldout_tasks"] for summary in summaries}
        shift = room * (0.6 + 0.35 * place)
        for name, x in (("before", first - shift), ("after", last + shift)):
            value, low, high = mean_rate([summary[f"pass_rate_{name}"] for summary in summaries])
            if len(summaries) == 1:
                low, high = summaries[0][f"pass_rate_{name}_interval"]
            ends = None if math.isnan(low) else [[value - low], [high - value]]  # seeds that are equal have no interval
            colour = ACCENT if len(curves) == len(curve.runs) == 1 else curve.colour
            axis.errorbar(
                [x], [value], yerr=ends, color=colour, marker="o", markersize=5, capsize=3, linewidth=1.5, clip_on=False
            )
            if len(curves) == 1:
                axis.annotate(
                    f"{value:.0%}",
                    (x, high if ends else value),
                    textcoords="offset points",
                    xytext=(0, 4),
                    ha="center",
                    color=colour,
                    fontsize=10,
                    fontweight="bold",
                )
    axis.autoscale(axis="y")  # once more: points and their intervals lie higher than the lines
    axis.set_ylim(0, axis.get_ylim()[1] * 1.08)  # the numbers stand above them
    if tasks:
        axis.set_xlim(first - room * (1.3 + 0.35 * len(curves)), last + room * (1.3 + 0.35 * len(curves)))
        axis.set_title(f"{PASS_RATE.title} (points: {'/'.join(map(str, sorted(tasks)))} held-out ones)")
    elif beside:
        axis.set_title(f"{PASS_RATE.title} (points: held-out ones)")


def stack(axis, steps: Sequence[int], layers: dict[str, tuple[Sequence[float], str]], top: float) -> None:
    """label -> (values, colour). Each layer is named at its right end."""
    axis.stackplot(
        steps,
        [values for values, _ in layers.values()],
        colors=[colour for _, colour in layers.values()],
        step="mid",
        linewidth=0,
    )
    axis.margins(x=0)
    axis.set_ylim(0, top)
    total = 0.0
    entries = []
    for label, (values, colour) in layers.items():
        entries.append((total + values[-1] / 2, label, colour))
        total += values[-1]
    name_at_the_right(axis, entries)


def name_at_the_right(axis, entries: Sequence[tuple[float, str, str]]) -> None:
    """(y, label, colour): beside the axes, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    entries = sorted(entries)
    places = [min(max((y - low) / (high - low), 0.0), 1.0) for y, _, _ in entries]
    heights = [0.03 + 0.055 * (1 + label.count("\n")) for _, label, _ in entries]  # of the axes
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + (heights[i - 1] + heights[i]) / 2)
    limit = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit - heights[i] / 2)
        limit = places[i] - heights[i] / 2
    for place, (_, label, colour) in zip(places, entries):
        axis.text(
            1.015, place, label, transform=axis.transAxes, color=colour, fontsize=8.5, va="center", linespacing=0.95
        )


def outcomes(axis, curve: Curve) -> None:
    rows = curve.rows(curve.runs[0])
    shown = {name: colour for name, colour in OUTCOMES.items() if any(row.get(f"outcome/{name}") for row in rows)}
    totals = [sum(row.get(f"outcome/{name}", 0) for name in shown) or 1 for row in rows]
    shares = {name: [row.get(f"outcome/{name}", 0) / total for row, total in zip(rows, totals)] for name in shown}
    stack(
        axis, curve.steps, {name.replace("_", "\n"): (shares[name], colour) for name, colour in shown.items()}, top=1.0
    )
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title("how episodes ended")


def seconds(axis, curve: Curve) -> None:
    rows = curve.rows(curve.runs[0])
    stack(
        axis,
        curve.steps,
        {label: ([row[key] for row in rows], colour) for key, (label, colour) in SECONDS.items()},
        top=cut_at_usual(axis, curve.steps, [sum(row[key] for key in SECONDS) for row in rows]),
    )
    axis.set_title(STEP_SECONDS.title)


def cut_at_usual(axis, steps: Sequence[int], values: Sequence[float]) -> float:
    """Upper end of an axis at which the usual values fill it. The few that are far larger, such as that of a first step
    which waits for vLLM, leave the picture there, and are written beside it."""
    usual = sorted(values)[int(0.9 * (len(values) - 1))]
    top = 1.08 * max(value for value in values if value <= 1.5 * usual)
    for step, value in zip(steps, values):
        if value > top:
            axis.annotate(
                f"\N{UPWARDS ARROW}{value:.0f} s",
                (step, 1.0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(7, -3),
                va="top",
                fontsize=8,
                color=TEXT,
            )
    return top
