"""Every key of a configuration's class as text: type, bounds, unit, default, and the line that stands beside it there.

    python -m coderepairrl.config.help > docs/configuration.md

`--help` of a program prints the same. That line is the comment beside the field (with the lines right below that go
on), else
the ones right above it, else (of a section) the first line of its class's docstring. Units are what the names of the
keys end in.
"""

import importlib
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from coderepairrl.config.notes import container, descriptions, first_paragraph, type_of
from coderepairrl.config.schema import discriminator, kind_of, models_in
from coderepairrl.config.yaml_core import dump

WIDTH, LONGEST_DEFAULT = 112, 70  # characters
UNITS = {
    "_s": "s",
    "seconds": "s",
    "minutes": "min",
    "_mib": "MiB",
    "_kib": "KiB",
    "_gb": "GB",
    "_bytes": "bytes",
    "tokens": "tokens",
    "_chars": "characters",
    "steps": "steps",
    "_elements": "elements",
}
ROOT = Path(__file__).resolve().parent.parent.parent
INTRODUCTION = """# Every key of every configuration

Written by `python -m coderepairrl.config.help > docs/configuration.md`; `--help` of a program prints the same.
A line is `key: type [unit] = default`; N stands for the number of an entry of a list, NAME for a key of a mapping.

YAML is read by the core schema of YAML 1.2: `16:00`, `2024_06`, `on`, `yes` and dates are texts, `1e-4` is a number,
`0o10` is 8; `010` is refused, and so is a key that stands twice in one mapping (of two mappings that `<<` merges,
too). A text where a number is wanted is refused, also in quotes, and the other way round. `base: other.yaml` (or a list
of files) starts from others, relative to the file; on the command line `a.b=c` overrides, read the same way.
"""


def lines(
    model: type[BaseModel],
    prefix: str = "",
    default: BaseModel | None = None,
    known: tuple[str, Sequence[type[BaseModel]]] = ("", ()),
) -> Iterator[str]:
    """Of all keys, sections after what stands beside them. `default`: what a left out section is; `known`: a key above
    and the classes that may stand there, whose keys are written out at that place."""
    said, later = descriptions(model), []
    for name, field in model.model_fields.items():
        if kind_of(model, name):
            continue
        value = getattr(default, name) if default is not None else _default(field)
        key = prefix + name
        if models_in(field.annotation):
            later.append((key, field, value, said[name]))
        else:
            yield from _wrapped(f"{key}: {type_of(field)}{_unit(name)}{_shown(value)}", "", 8)
            yield from _wrapped(said[name])
    for key, field, value, text in later:
        yield from _section(key, field, value, text, known)


def _section(
    key: str, field: FieldInfo, value: Any, text: str, known: tuple[str, Sequence[type[BaseModel]]]
) -> Iterator[str]:
    models, by = models_in(field.annotation), discriminator(field)
    below = key + {list: ".N", tuple: ".N", dict: ".NAME"}.get(container(field.annotation), "")
    yield ""
    yield from _wrapped(f"{key}: {type_of(field)}" + (_shown(value) if not isinstance(value, BaseModel) else ""), "", 8)
    yield from _wrapped(text)
    if by and set(models) <= set(known[1]):
        yield f"    Its keys: as of {known[0]}, by the same {by}"
        return
    for model in models:
        default = value if isinstance(value, model) else None
        if by:
            yield ""
            yield f"{below} of {by}: {kind_of(model, by)}" + (" (the default)" if default is not None else "")
            yield from _wrapped(first_paragraph(model))
        yield from lines(model, below + ".", default, (below, models) if by else known)


def _wrapped(text: str, first: str = "    ", indent: int = 4) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _unit(name: str) -> str:
    unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    return f" [{unit}]" if unit else ""


def _default(field: FieldInfo) -> Any:
    return field.default if field.default_factory is None else ...


def _shown(value: Any) -> str:
    if value is PydanticUndefined:
        return " (required)"
    if value is ...:
        return " (computed)"
    plain = lambda part: part.model_dump() if isinstance(part, BaseModel) else part
    text = dump(list(map(plain, value)) if isinstance(value, list | tuple) else value, flow=True)
    return f" = {text if len(text) <= LONGEST_DEFAULT else text[:LONGEST_DEFAULT] + '...'}"


def text(doc: str, models: tuple[type[BaseModel], ...]) -> str:
    """What --help prints: the program's docstring, then the keys of each configuration that it reads."""
    parts = [doc.strip()]
    for model in models:
        parts.append(f"{model.__name__}, key: type [unit] = default\n\n" + "\n".join(lines(model)))
    return "\n\n".join(parts)


def programs() -> dict[str, tuple[type[BaseModel], ...]]:
    """Path of each program that reads configurations -> their classes."""
    found = {}
    files = [path for folder in ("scripts", "slurm", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    for path in sorted(files, key=lambda path: (path.stem.startswith("bench"), path.stem != "train_grpo", path)):
        if "\n@program(" in path.read_text():
            sys.path.insert(0, str(path.parent))
            found[str(path.relative_to(ROOT))] = importlib.import_module(path.stem).main.configs
            sys.path.pop(0)
    return found


def page() -> str:
    """docs/configuration.md. What several programs read under the same key, word for word, is written out once."""
    parts, where = [INTRODUCTION], {}
    for path, models in programs().items():
        parts += [f"## {path}\n", "```"]
        for model in models:
            for first, group in itertools.groupby(_blocks(model), key=lambda block: re.split(r"[.: ]", block)[0]):
                head, dot, keys = "\n\n".join(group).partition(f"\n{first}.")
                known = where.setdefault(f"{first}.{keys}", path) if dot else path
                parts.append((head + dot + keys if known == path else f"{head}\n    Its keys: as in {known}") + "\n")
        parts[-1] = parts[-1].rstrip("\n")
        parts.append("```\n")
    return "\n".join(parts)


def _blocks(model: type[BaseModel]) -> list[str]:
    """The keys at the root, then one block a section."""
    return "\n".join(lines(model)).split("\n\n")


if __name__ == "__main__":
    print(page(), end="")
