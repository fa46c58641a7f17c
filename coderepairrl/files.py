"""Small files that processes meet through: JSON, whole or not there."""
import json
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def read_json(path: Path) -> Any | None:
    """None when the file is not there (yet)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
