"""Hashes of what a configuration only names: a model's folder, files, tasks with their base folders.

Bytes and names count, places and dates don't. Nothing is remembered between two programs: a hash is of what is there
now.
Weights are read by several threads, and whoever loads the model next finds them in memory.
"""

import hashlib
import json
import os
import platform
import stat
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from coderepairrl.errors import ConfigError
from coderepairrl.types import Task

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
NO_PART = (".md", ".lock", ".tmp")  # of a model's folder; neither are hidden files and folders
THREADS = 8
SHOWN = 12  # characters of a hash


def file(path: str | Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """Of their bytes, in this order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return hashlib.sha256("".join(pool.map(file, paths)).encode()).hexdigest()


@cache
def tree(path: str) -> str:
    """Of a file; or of a folder: names, executable bits, links and bytes of all that is below it, but for its .git."""
    if os.path.isfile(path):
        return file(path)
    rows = []
    for where, folders, files in os.walk(path):
        folders[:] = sorted(set(folders) - ({".git"} if where == path else set()))
        for name in sorted(files) + [name for name in folders if os.path.islink(os.path.join(where, name))]:
            one = os.path.join(where, name)
            mode = os.lstat(one).st_mode
            content = os.readlink(one) if stat.S_ISLNK(mode) else file(one) if stat.S_ISREG(mode) else ""
            rows.append([os.path.relpath(one, path), stat.S_IFMT(mode) | mode & 0o100, content])
    return digest(rows)


@cache
def traces(folder: str) -> str:
    """Of a folder that is looked at too often to be read: names, kinds, sizes and dates of all that is below it."""
    rows = []
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in (*sorted(files), *folders):
            one = os.path.join(where, name)
            found = os.lstat(one)
            rows.append([os.path.relpath(one, folder), found.st_mode, found.st_size, found.st_mtime_ns])
    return digest(rows)


def named(path: str) -> dict[str, str]:
    return {"path": path, "sha256": tree(os.path.abspath(path))}


def model_folder(path: str) -> str:
    """Where its weights are: of a training run the newest checkpoint, else the folder itself. ConfigError when there is
    none."""
    checkpoints = sorted(found for found in Path(path, "checkpoints").glob("step_*") if found.suffix != ".tmp")
    return there(str(checkpoints[-1] / "policy") if checkpoints else path)


def there(folder: str) -> str:
    """A Hugging Face folder, as it was given. ConfigError when it is none."""
    if not Path(folder, "config.json").exists():
        raise ConfigError(
            f"{folder}: no model there (no config.json): make it first (scripts/make_policy.py, "
            "scripts/train_sft.py), or correct model:"
        )
    return folder


def model(folder: str) -> dict[str, dict[str, str]]:
    """{"model.weights", "model.tokenizer_and_config"}: each {"path", "sha256"}, of files in the Hugging Face folder
    itself."""
    files = [
        found
        for found in sorted(Path(folder).iterdir())
        if found.is_file() and found.suffix not in NO_PART and not found.name.startswith(".")
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(zip((found.name for found in files), pool.map(file, files), strict=True))
    weights = [row for row in rows if row[0].endswith(WEIGHTS)]
    parts = {"weights": weights, "tokenizer_and_config": [row for row in rows if row not in weights]}
    return {f"model.{part}": {"path": folder, "sha256": digest(own)} for part, own in parts.items()}


def tasks(found: Iterable[Task]) -> dict[str, str]:
    """Task id -> a hash of all that the task says, and of what its base folder holds; in their order."""
    return {one.task_id: task(one) for one in found}


def task(one: Task) -> str:
    row = asdict(one)
    place = row["environment"]
    if place["base"]:
        place["base"] = tree(os.path.abspath(place["base"]))
    if place["lock"]:  # says what the interpreter is, wherever it lies
        place["python"] = ""
    for field in ("language", "tools", "tool_folders"):  # which tasks of Python have not; the lock says what tools are
        if field == "tool_folders" or place[field] in ("python", ()):
            del place[field]
    if place["python"] == sys.executable:  # wherever the project's environment lies
        place["python"] = platform.python_version()
    return digest(row)[:16]


def digest(rows: Any) -> str:
    """Of what JSON can say."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode(errors="surrogatepass")).hexdigest()
