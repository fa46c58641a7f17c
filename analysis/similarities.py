"""What each similarity gives to patches that repair nothing, as the table of docs/rewards.md: mean over the oracles of
a task set.

    python analysis/similarities.py                          the shipped bugs in real packages
    python analysis/similarities.py ROWS.parquet|ROWS.json   rows with a `patch` column
    python analysis/similarities.py ROWS.jsonl               prepared tasks (oracle_patch)

Deterministic; no test is run, nothing is downloaded.
"""

import sys
from collections.abc import Callable
from statistics import fmean

from coderepairrl.diffs import FileChange, split_diff
from coderepairrl.rewards.patch import patch_similarity
from coderepairrl.rewards.similarity import SIMILARITIES
from coderepairrl.run.program import program
from coderepairrl.tasks.packages import RealPackagesConfig, load
from coderepairrl.tasks.rows import read_rows

SHIPPED = "shipped"
MAX_CHARACTERS = 20_000  # of an oracle: the few longer ones take most of the time
ALL = {"patch": patch_similarity, **SIMILARITIES}


def rebuilt(change: FileChange, edit: Callable[[str, list[str]], list[str]]) -> str:
    """The section with each hunk's lines through `edit(header, lines)`, and its header's numbers made to fit."""
    out, hunk, header, shift = [], [], "", 0

    def flush() -> None:
        nonlocal shift
        if header:
            start = int(header.split()[1][1:].split(",")[0])
            lines = edit(header, hunk)
            old, new = (sum(line[:1] in kinds for line in lines) for kinds in (" -", " +"))
            out.append(f"@@ -{start},{old} +{start + shift},{new} @@")
            out.extend(lines)
            shift += new - old

    for line in change.text.removesuffix("\n").split("\n"):
        if line.startswith("@@ "):
            flush()
            header, hunk = line, []
        elif header:
            hunk.append(line or " ")
        else:
            out.append(line)
    flush()
    return "\n".join(out) + "\n"


def through(oracle: str, edit: Callable[[str, list[str]], list[str]]) -> str:
    return "".join(rebuilt(change, edit) for change in split_diff(oracle))


def kept(lines: list[str]) -> list[str]:
    """The hunk's old text as context."""
    return [" " + line[1:] for line in lines if line[:1] in " -"]


PATCHES: dict[str, Callable[[str, str], str]] = {  # (oracle, an unrelated oracle) -> diff
    "gold": lambda oracle, other: oracle,
    "one comment a hunk": lambda oracle, other: through(oracle, lambda _, lines: ["+# fix", *kept(lines)]),
    "deletions only": lambda oracle, other: through(
        oracle, lambda _, lines: [line for line in lines if line[:1] in " -"]
    ),
    "no-op": lambda oracle, other: through(
        oracle, lambda _, lines: [*(f"-{line[1:]}" for line in kept(lines)), *(f"+{line[1:]}" for line in kept(lines))]
    ),
    "whitespace": lambda oracle, other: through(
        oracle, lambda _, lines: [part for line in kept(lines) for part in (f"-{line[1:]}", f"+{line[1:]}  ")]
    ),
    "unrelated patch": lambda oracle, other: other,
    "empty": lambda oracle, other: "",
}


def oracles(arguments: list[str]) -> list[str]:
    if not arguments:
        return [task.oracle_patch for tasks in load(RealPackagesConfig()).values() for task in tasks]
    return [patch for row in read_rows(arguments[0], "test") if (patch := row.get("patch") or row.get("oracle_patch"))]


def table(patches: list[str]) -> str:
    """Markdown: a row a similarity, a column a kind of patch."""
    patches = [patch for patch in patches if patch.strip() and len(patch) <= MAX_CHARACTERS]
    if not patches:
        return f"No oracle of at most {MAX_CHARACTERS} characters there: nothing to compare."
    lines = ["| similarity | " + " | ".join(PATCHES) + " |", "|---|" + "---|" * len(PATCHES)]
    for name, similarity in ALL.items():
        means = [
            fmean(similarity(make(oracle, patches[index - 1]), oracle) for index, oracle in enumerate(patches))
            for make in PATCHES.values()
        ]
        lines.append(f"| `{name}` | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines + ["", f"Mean over {len(patches)} oracles."])


@program
def main(arguments: list[str]) -> None:
    print(table(oracles([word for word in arguments if word != SHIPPED])))


if __name__ == "__main__":
    main(sys.argv[1:] or [SHIPPED])
