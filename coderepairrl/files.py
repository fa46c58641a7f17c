"""The project's folder, and what processes meet through: files of JSON and folders, whole or not there."""

import errno
import gzip
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # the project's folder; in a job that of its frozen code


def write_json(path: Path, value: Any) -> None:
    """Several processes may write it at once: the last one's is there, whole. ValueError for NaN, which is no JSON."""
    write_text(path, json.dumps(value, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """The same of a text. Halves of characters, which no file holds, are question marks in it."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name beside `path`, for the block to write a file or a folder there; after the block it is `path`. Of a
    block that raises, nothing is left. Of several processes that write a file, the last one's is there; a folder that
    is there already raises OSError."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any | None:
    """None when the file is not there (yet)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def publish(made: Path, folder: Path) -> None:
    """Gives a folder that is complete its name. Where another process was first, with the same content, `made` stays
    where it is."""
    try:
        made.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """A row a line. Several processes may write it at once: the last one's is there, whole."""
    with whole(path) as temporary:
        temporary.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    """Of a file of ours. Raises ValueError."""
    return [from_json(line) for _, line in json_lines(path)]


def json_lines(path: Path) -> list[tuple[int, bytes]]:
    """(its number, the line) of each line that holds something. JSON Lines end at line feeds only: U+2028, U+0085 and
    form feeds may stand in a
    text, where str.splitlines() would cut it. A name that ends with .gz is that of a compressed file."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]


def from_json(data: bytes) -> Any:
    """Raises ValueError that says in one line what is wrong, and what to do."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}): convert the file (iconv -f LATIN1 -t UTF-8)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): write it again") from error


def drop_torn_line(path: Path) -> None:
    """Of a file that rows are appended to, if it is there: a writer that was killed can leave a last line without its
    end. That row was never
    acted upon, and the next one must not be glued to it."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
