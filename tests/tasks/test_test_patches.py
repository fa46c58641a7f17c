"""A test patch is more than texts: what its own git would make of the base is what the tests find, whatever the agent
did to it."""

import asyncio
import dataclasses
import subprocess

import pytest
from judge_helpers import FIX, PYTEST_TASK, WRONG, change, paths

from coderepairrl.rewards import grade
from coderepairrl.tasks.building import resolve_patches

TEST = (
    "import os\nfrom pathlib import Path\nfrom lib import f, g\n\nHERE = Path('tests/data')\n\n\ndef test_f():\n"
    "    assert f(1) == 2\n    assert {asks}\n\n\ndef test_g():\n    assert g(3) == 3\n"
)
CASES = {  # name -> (what bash makes of the base, what the test asks of it)
    "an executable": (
        "mkdir tests/data; echo '#!/bin/sh' > tests/data/tool; chmod +x tests/data/tool",
        "os.access(HERE / 'tool', os.X_OK)",
    ),
    "a mode alone": ("chmod +x tests/plain", "os.access('tests/plain', os.X_OK)"),
    "no longer executable": ("chmod -x tests/tool", "not os.access('tests/tool', os.X_OK)"),
    "a mode and an edit": (
        "chmod +x tests/plain; echo new > tests/plain",
        "os.access('tests/plain', os.X_OK) and Path('tests/plain').read_text() == 'new\\n'",
    ),
    "a binary file": (
        "mkdir tests/data; printf '\\0\\1' > tests/data/a.bin",
        "(HERE / 'a.bin').read_bytes() == b'\\0\\1'",
    ),
    "an edit of a binary file": ("printf '\\0\\2' > tests/old.bin", "Path('tests/old.bin').read_bytes() == b'\\0\\2'"),
    "a source in Latin-1": ("printf '# \\351' > tests/latin.txt", "Path('tests/latin.txt').read_bytes() == b'# \\xe9'"),
    "a deletion": ("rm tests/plain", "not os.path.lexists('tests/plain')"),
    "a deletion of a binary file": ("rm tests/old.bin", "not os.path.lexists('tests/old.bin')"),
    "a rename": (
        "mv tests/plain tests/other",
        "not os.path.lexists('tests/plain') and Path('tests/other').read_text() == 'plain\\n'",
    ),
    "a file becomes a folder": (
        "rm tests/plain; mkdir tests/plain; echo 1 > tests/plain/one.txt",
        "Path('tests/plain/one.txt').read_text() == '1\\n'",
    ),
    "a folder becomes a file": (
        "rm -r tests/folder; echo 1 > tests/folder",
        "Path('tests/folder').read_text() == '1\\n'",
    ),
    "a link": ("ln -s plain tests/link", "os.readlink('tests/link') == 'plain'"),
    "a file becomes a link": ("ln -sf tool tests/plain", "os.readlink('tests/plain') == 'tool'"),
    "a link becomes a file": (
        "rm tests/linked; echo x > tests/linked",
        "not os.path.islink('tests/linked') and Path('tests/linked').read_text() == 'x\\n'",
    ),
    "an empty file": ("touch tests/empty", "Path('tests/empty').read_bytes() == b''"),
    "CRLF": ("printf 'a\\r\\n' > tests/crlf", "Path('tests/crlf').read_bytes() == b'a\\r\\n'"),
}


@pytest.fixture
def base(tmp_path):
    root = tmp_path / "base"
    (root / "tests/folder").mkdir(parents=True)
    for name, data in {
        "lib.py": WRONG.encode(),
        "tests/plain": b"plain\n",
        "tests/tool": b"#!/bin/sh\n",
        "tests/old.bin": b"\0\1",
        "tests/folder/x": b"x\n",
    }.items():
        (root / name).write_bytes(data)
    (root / "tests/tool").chmod(0o755)
    (root / "tests/linked").symlink_to("tool")
    return root


def _git(folder, *words):
    return subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True, capture_output=True
    ).stdout.decode(errors="surrogateescape")


def _made(base, tmp_path, command):
    work = tmp_path / "work"
    subprocess.run(["cp", "-a", base, work], check=True)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        _git(work, *words)
    subprocess.run(["bash", "-ec", command], cwd=work, check=True)
    _git(work, "add", "-A")
    return _git(work, "diff", "--cached", "--binary", "-M")


@pytest.mark.parametrize("case", CASES)
def test_the_tests_find_what_the_test_patch_makes(config, tmp_path, base, case):
    command, asks = CASES[case]
    patch = _made(base, tmp_path, command) + change("tests/test_new.py", None, TEST.replace("{asks}", asks))
    task = dataclasses.replace(
        PYTEST_TASK,
        files={},
        hidden_tests={},
        test_patch=patch,
        test_selection=("tests/test_new.py",),
        fail_to_pass=("tests.test_new::test_f",),
        pass_to_pass=("tests.test_new::test_g",),
        environment=dataclasses.replace(PYTEST_TASK.environment, base=str(base)),
    )
    built = resolve_patches(task)
    assert resolve_patches(built) == built
    cheat = change("tests/plain", "plain\n", "mine\n")

    async def main():
        return [await grade(built, diff, config) for diff in (FIX, "", cheat + FIX)]

    gold, empty, honest = asyncio.run(main())
    assert gold.resolved and not gold.dropped_paths and not empty.resolved, gold
    assert honest.resolved and (not honest.dropped_paths or paths(honest.dropped_paths) == ("tests/plain",)), honest
