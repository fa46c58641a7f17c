"""Draws runs: pass rate, reward, entropy, gradient norm, gap between trainer and vLLM, how episodes ended, where the
time went ...

    python analysis/curves.py runs/quickstart                              -> runs/quickstart/curves.png
    python analysis/curves.py runs/a runs/a_seed1 runs/b_seed* out=ab.png

Runs of the same name up to _seedN are one curve: the mean, with a 95% interval over seeds (Student's t; on logarithmic
axes of the logarithms). Only steps that all seeds of a curve have are drawn. Nothing is smoothed. A panel of which
there is nothing to see (no such metric, or all zeros) is left out; where a step had nothing to measure, a line has a
gap.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from figure import INK, STYLE, TEXT, runs_and_picture, save
from matplotlib.ticker import MaxNLocator
from panels import (
    PANELS,
    STEP_SECONDS,
    SUBMITTED,
    cut_at_usual,
    held_out,
    lines,
    measured,
    outcomes,
    pass_rate,
    seconds,
)
from seeds import differences
from series import Curve, load

from coderepairrl.run.program import program


def header(figure, curves: Sequence[Curve]) -> None:
    """What is drawn: of one run its size, of several the legend."""
    if len(curves) == len(curves[0].runs) == 1:
        run, steps = curves[0].runs[0], len(curves[0].steps)
        size = (
            f"{run.summary['episodes']:,} episodes, {run.summary['tokens_trained']:,} tokens trained"
            if run.summary
            else "not finished"
        )
        figure.suptitle(
            f"{run.folder.resolve().name}    {steps} steps, {size}", fontsize=12, x=0.008, ha="left", color=INK
        )
        return
    handles = [plt.Line2D([], [], color=curve.colour, linewidth=2.5) for curve in curves]
    names = [f"{curve.name} ({len(curve.runs)} seed{'s' * (len(curve.runs) > 1)})" for curve in curves]
    several, single = any(len(curve.runs) > 1 for curve in curves), any(len(curve.runs) == 1 for curve in curves)
    said = ["mean over seeds with 95% interval (Student's t)"] * several + [
        "one seed: interval of its points over tasks"
    ] * single
    figure.suptitle("; ".join(said), fontsize=10, x=0.992, ha="right", color=TEXT)
    figure.legend(
        handles, names, loc="outside upper left", ncols=len(names), frameon=False, fontsize=11, handlelength=1.4
    )


def draw(curves: Sequence[Curve], path: Path) -> None:
    runs = [run for curve in curves for run in curve.runs]
    alone = len(runs) == 1
    panels = [panel for panel in PANELS if panel.drawn(runs)]
    more = [] if alone else [panel for panel in (SUBMITTED, STEP_SECONDS) if panel.drawn(runs)]
    skill = measured(curves)
    # of the first there are points
    skill = [] if len(skill) < 2 else [skill] if len(curves) == 1 else [[panel] for panel in skill[1:]]
    count = 1 + len(skill) + len(panels) + (2 if alone else len(more))
    first, last = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)
    columns = 3 if count <= 9 else 4
    with plt.rc_context(STYLE):
        rows = math.ceil(count / columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(5.0 * columns, 3.0 * rows + 0.4), layout="constrained", squeeze=False
        )
        places = iter(axes.flat)
        pass_rate(next(places), curves)
        for own in skill:
            held_out(next(places), curves, own)
        for panel in (*panels, *more):
            axis = next(places)
            lines(axis, curves, panel)
            if panel is STEP_SECONDS:
                slowest: dict[int, float] = {}
                for row in (row for run in runs for row in run.rows):
                    slowest[row["step"]] = max(row["step_s"], slowest.get(row["step"], 0.0))
                axis.set_ylim(0, cut_at_usual(axis, list(slowest), list(slowest.values())))
        if alone:
            outcomes(next(places), curves[0])
            seconds(next(places), curves[0])
        for axis in axes.flat[:count]:
            axis.set_xticks(
                [tick for tick in MaxNLocator(8, integer=True).tick_values(first, last) if first <= tick <= last]
            )
            axis.set_xlabel("step")
        for axis in places:
            axis.set_visible(False)
        header(figure, curves)
        save(figure, path)


@program
def main(arguments: list[str]) -> None:
    folders, path = runs_and_picture(arguments, __doc__, "curves.png")
    try:
        curves = load(folders)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for curve in curves:
        if found := differences([run.folder for run in curve.runs]):
            print(
                f"warning: the runs of {curve.name} differ by more than the seed: {'; '.join(found)}", file=sys.stderr
            )
    draw(curves, path)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
