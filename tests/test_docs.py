"""What README.md and docs/ name is there: files, links, programs with their arguments, configuration keys, Python
names, metrics. CHANGELOG.md, docs/log.md and docs/history name what there was on their day: of them links alone are
checked.
"""

import ast
import importlib
import inspect
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from coderepairrl.config import help, load, notes, schema, yaml_core
from coderepairrl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "coderepairrl"
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
FOLDERS = set("analysis benchmarks coderepairrl configs docs examples requirements scripts slurm tests".split())
TODAY = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ("configuration.md", "log.md")),
]
ALL = [*TODAY, ROOT / "CHANGELOG.md", ROOT / "docs" / "log.md", *sorted((ROOT / "docs" / "history").glob("*.md"))]
FILES = (".py", ".json", ".jsonl", ".yaml", ".toml", ".lock")
# files that the reader writes, or that lie in a task's repository
EXAMPLES = {"configs/site/mine.yaml", "tests/test_x.py", "my_rewards.py", "lib.py", "test_lib.py", "json.py"}
EXAMPLES |= {"pytest.py", "test.py", "setup.py", "validators.py"}
PROGRAM = re.compile(r"python ((?:scripts|benchmarks|analysis|slurm)/\w+\.py)([^\n`|;&#<>]*)")
DOTTED = re.compile(r"`([a-z_]+(?:\.\w+)+)(?:=[^`]*|\([^`]*\)|: [^`]*)?`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_of(text: str) -> list[str]:
    """Spans and lines of blocks; a line that ends with a backslash goes on."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.M)
    return [*re.findall(r"`([^`\n]+)`", text), *indented, *(line for block in blocks for line in block.split("\n"))]


def is_there(name: str, document: Path) -> bool:
    return any(list(folder.glob(name)) for folder in (ROOT, PACKAGE, ROOT / "tests", document.parent))


@pytest.mark.parametrize("document", TODAY, ids=name_of)
def test_files_that_a_page_names_are_there(document):
    words = re.findall(r"(?<![\w/.*{}~$-])((?:[\w.*-]+/)+[\w.*-]*\w)(?![\w{$]|\*|/\{)", document.read_text())
    named = {word for word in words if word.split("/")[0] in FOLDERS}
    named |= {word for word in words if word.split("/")[0] in ROOMS and word.endswith((".py", ".yaml", ".jinja"))}
    assert not [word for word in sorted(named - EXAMPLES) if not is_there(word, document)]
    bare = set(re.findall(r"(?<![\w/.*{}~$-])(\w+\.(?:py|sh|sbatch))\b", document.read_text()))
    assert not bare - EXAMPLES - {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}


@pytest.mark.parametrize("document", ALL, ids=name_of)
def test_links_lead_somewhere(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        page = (document.parent / path).resolve() if path else document
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def programs() -> dict[str, tuple[type[BaseModel], ...]]:
    return help.programs()


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """Each program that a page starts, with its arguments as far as they are written out."""
    found = []
    for code in code_of(document.read_text()):
        for path, rest in PROGRAM.findall(code):
            try:
                words = shlex.split(rest, comments=True)
            except ValueError:  # an argument that goes on beyond the span
                words = shlex.split(rest.replace("'", "").replace('"', ""))
            found.append((path, [word for word in words if not set(word) & set("$") and word != "..."]))
    return found


def written_out(argument: str) -> bool:
    """Whether an override says what it sets, and not only that something is to be set: `shapes=[...]`, `seed=N`."""
    key, equals, value = argument.partition("=")
    return bool(equals) and "..." not in value and not re.fullmatch(r"[A-Z]+|\d\|\d", value) and "N" not in value


@pytest.mark.parametrize("document", TODAY, ids=name_of)
def test_commands_that_a_page_gives_would_be_taken(document):
    refused = []
    for path, words in commands(document):
        if not (ROOT / path).exists():
            refused.append(path)
        configurations = [word for word in words if word.endswith(".yaml") and (ROOT / word).exists()]
        if path not in programs() or not configurations:
            continue
        overrides = [word for word in words if not word.startswith("-") and written_out(word)]
        try:
            load(programs()[path][0], ROOT / configurations[0], overrides)
        except ConfigError as error:
            refused.append(f"{path} {' '.join(words)}: {error}")
    assert not refused


def key_is_there(model: type[BaseModel], key: str) -> bool:
    """Numbers and names in lists and mappings are taken as they come."""
    models, named = [model], False
    for part in key.split("."):
        if named:  # an entry of a mapping of sections
            named = False
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if not fields:
            return False
        models = [found for field in fields for found in schema.models_in(field.annotation)]
        named = any(notes.container(field.annotation) is dict for field in fields)
        if not models:  # a value, or a mapping of names to values
            return True
    return True


def object_is_there(name: str) -> bool:
    """A module, or something in one, of the package: `rewards.build.validate`."""
    parts = name.removeprefix("coderepairrl.").split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["coderepairrl", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return inspect.isclass(found) and part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("document", TODAY, ids=name_of)
def test_keys_and_python_names_that_a_page_names_are_there(document):
    models = {model for configs in programs().values() for model in configs}
    roots = {name for model in models for name in model.model_fields}
    unknown = []
    for name in sorted(set(DOTTED.findall(document.read_text()))):
        if name.split(".")[0] not in roots | ROOMS | {"coderepairrl"} or name.endswith(FILES):
            continue
        if not any(key_is_there(model, name) for model in models) and not object_is_there(name):
            unknown.append(name)
    assert not unknown


@pytest.mark.parametrize("document", TODAY, ids=name_of)
def test_yaml_that_a_page_shows_has_keys_that_there_are(document):
    models = {model for configs in programs().values() for model in configs}
    for block in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.S | re.M):
        value, _ = yaml_core.parse(block, lambda line: f"{document.name}, a block's line {line}")
        value.pop("base", None)
        assert any(all(key_is_there(model, key) for key in keys_of(value, model)) for model in models), block


def keys_of(value: dict, model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, below in value.items():
        key = f"{prefix}{name}"
        keys += keys_of(below, model, f"{key}.") if isinstance(below, dict) and below else [key]
    return keys


@cache
def texts() -> tuple[set[str], list[re.Pattern]]:
    """All texts of the package's code, and its f-strings with a group for each thing that is put in."""
    whole, made = set(), []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                whole.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                if any(part and re.search("[a-z]", part) for part in parts):
                    made.append(re.compile("".join("(.+)" if part is None else re.escape(part) for part in parts)))
    return whole, made


def is_written(name: str) -> bool:
    """Whether the package can write a metric of that name; NAME and K stand for anything."""
    whole, made = texts()
    found = (pattern.fullmatch(name) for pattern in made)
    return name in whole | {"NAME", "K"} or any(match and all(map(is_written, match.groups())) for match in found)


def metrics_named(text: str) -> set[str]:
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_metric_that_the_page_explains_is_written_somewhere():
    names = metrics_named((ROOT / "docs" / "metrics.md").read_text())
    assert len(names) > 60 and is_written("eval/pass_at_K") and not is_written("eval/passed_share")
    assert not [name for name in sorted(names) if not is_written(name)]


@pytest.mark.parametrize("document", TODAY, ids=name_of)
def test_metrics_that_a_page_names_are_explained(document):
    known = metrics_named((ROOT / "docs" / "metrics.md").read_text())
    families = {name.split("/")[0] for name in known if "/" in name}
    said = set(re.findall(r"`((?:" + "|".join(families) + r")/\w[\w/]*)`", document.read_text()))
    if document.name != "metrics.md":  # which also has other projects' names
        assert not said - known
