"""What the pictures of runs share: their command line, their colours, their file."""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from coderepairrl.files import whole

matplotlib.use("Agg")  # draws into files, needs no display
INK, ACCENT, TEXT = "#20303c", "#c8553d", "#5c6b75"
SOFT = "#8aa1ad"
# told apart by the colour-blind as well (Okabe, Ito)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE = {
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def runs_and_picture(arguments: Sequence[str], usage: str, name: str) -> tuple[list[Path], Path]:
    """(run folders, file of the picture): `name` in the first of them, or what out= says. Exits with a line, or the
    usage, when there is nothing to draw."""
    folders = [Path(argument) for argument in arguments if not argument.startswith("out=")]
    out = [Path(argument.removeprefix("out=")) for argument in arguments if argument.startswith("out=")]
    if not folders:
        sys.exit(usage)
    for folder in folders:
        if not (folder / "metrics.jsonl").is_file():
            sys.exit(f"error: {folder}: no metrics.jsonl there: give the folder of a run that has trained a step")
    return folders, out[-1] if out else folders[0] / name


def save(figure: Figure, path: Path) -> None:
    """Whole or not there."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
