"""The one commit that a task starts from: from a git mirror, or from a source distribution of the package index."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coderepairrl.config import Config
from coderepairrl.environments.cache import EnvironmentsConfig, StepError, Steps
from coderepairrl.environments.copies import find
from coderepairrl.errors import TaskError
from coderepairrl.processes import cause
from coderepairrl.sandboxes.git import EPOCH_S

DOWNLOAD_TIMEOUT_S = 600.0
_BASE = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "base"), ("EMAIL", "base@localhost"), ("DATE", f"{EPOCH_S} +0000"))
}
# The user's configuration stays for what fetching needs (proxy, certificates, credentials); what could change a
# checkout is set here.
_SET = (
    "core.autocrlf=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.logAllRefUpdates=false",
    "gc.auto=0",
    "protocol.version=2",
)


class Archive(Config):
    """A pinned source distribution; `keep`: its top-level files and folders that are unpacked, all when empty."""

    name: str
    version: str
    sha256: str
    keep: tuple[str, ...]


# ---- git ------------------------------------------------------------------------------------------------------------


def fetch_commit(source: str, commit: str, checkout: Path, config: EnvironmentsConfig, steps: Steps) -> list[str]:
    """The files of the commit, and a .git with one commit that has no parent, no remote, no tag and no reflog. `source`
    is OWNER/NAME.

    `commit` may be cut to as few as seven digits, as SWE-smith's rows have it: then it has to be that of a branch or
    tag of a mirror, or in
    a mirror that is a folder, or SWE-smith's own copy of that commit has to be there.

    Returns the files that the mirror lacks and that are left out; only with `config.incomplete_mirrors`.
    """
    if not re.fullmatch("[0-9a-f]{7,40}", commit):
        raise StepError(f"{commit!r} is no full commit id, nor seven or more of its first digits: correct the revision")
    checkout.mkdir()
    with _git(checkout, steps) as git:
        git("init", "-q", "--template=", "--initial-branch=main", ".")
        commit = _fetch(source, commit, checkout, config, git)
        git("read-tree", commit)
        absent = _absent(git)
        if absent and not config.incomplete_mirrors:
            raise StepError(
                f"the mirror lacks {len(absent)} files of {commit[:12]} ({', '.join(absent[:3])}): complete it, or "
                "leave them out by "
                "environments.incomplete_mirrors=true"
            )
        git("update-index", "--force-remove", "-z", "--stdin", stdin="\0".join(absent))
        git("checkout-index", "-a", "-f", "-q")
        git("update-ref", "refs/heads/main", git("commit-tree", "-m", "base", git("write-tree").strip()).strip())
        _keep_only("main", checkout / ".git", git)
    return absent


def _keep_only(branch: str, repository: Path, git: Callable[..., str]) -> None:
    """Its objects are then one pack of what the branch needs: no loose ones, no borrowed ones. Packed by name, not by
    `git repack`: of a mirror that is a partial clone it copies the whole history, later commits and all."""
    objects = repository / "objects"
    owned = [path for path in objects.iterdir() if path.name != "info"]
    # deltas are taken over where the mirror has them; to look for more costs more than it saves
    pack = ("-c", "pack.threads=1", "pack-objects", "--revs", "--window=0", "-q", str(objects / "new"))
    name = git(*pack, stdin=f"{branch}\n").strip()
    for folder in owned:
        shutil.rmtree(folder)
    (objects / "pack").mkdir()
    for kind in ("pack", "idx"):
        os.rename(objects / f"new-{name}.{kind}", objects / "pack" / f"pack-{name}.{kind}")
    for left in ("FETCH_HEAD", "shallow", "objects/info/alternates"):
        (repository / left).unlink(missing_ok=True)


def _absent(git: Callable[..., str]) -> list[str]:
    """Files of the index whose content is not there: a mirror may have been made without its large files."""
    names: dict[str, list[str]] = {}
    for entry in git("ls-files", "-s", "-z").split("\0"):
        about, tab, name = entry.partition("\t")
        if tab and not about.startswith("160000"):  # a submodule's commit lies elsewhere anyway
            names.setdefault(about.split()[1], []).append(name)
    answers = git("cat-file", "--batch-check", stdin="".join(f"{blob}\n" for blob in names))
    return sorted(name for line in answers.split("\n") if line.endswith(" missing") for name in names[line.split()[0]])


def commit_tracked(checkout: Path, steps: Steps) -> None:
    """A checkout whose .git, of whatever history, is replaced by one commit of what it tracked; of all files where it
    had none."""
    with _git(checkout, steps) as git:
        old = checkout / ".git"
        tracked = git("ls-files", "-z") if old.exists() else None
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        git("init", "-q", "--template=", "--initial-branch=main", ".")
        if tracked is None:
            git("add", "-A", "-f")
        elif present := [name for name in tracked.split("\0") if name and os.path.lexists(checkout / name)]:
            git(
                "--literal-pathspecs",
                "add",
                "-f",
                "--pathspec-from-file=-",
                "--pathspec-file-nul",
                stdin="\0".join(present),
            )
        git("update-ref", "refs/heads/main", git("commit-tree", "-m", "base", git("write-tree").strip()).strip())


def files_of(checkout: Path) -> set[str]:
    """All paths of files in it."""
    return {
        os.path.relpath(os.path.join(where, name), checkout) for where, _, names in os.walk(checkout) for name in names
    }


def tracked_of(checkout: Path, steps: Steps) -> set[str]:
    """Those that git knows."""
    with _git(checkout, steps) as git:
        return {name for name in git("ls-files", "-z").split("\0") if name}


def remove_copies(checkout: Path, files: set[str]) -> list[str]:
    """Removes what a build left in the checkout of the project's own code, beside its `files`: build/lib, bytecode.
    Where a
    bug is laid over the checkout, that is the repair. Returns what it was."""
    kept = {str(parent) for name in files for parent in (Path(name), *Path(name).parents)}
    bytecode = (str(path) for path in checkout.rglob("__pycache__") if ".git" not in path.relative_to(checkout).parts)
    found = dict.fromkeys((*find(str(checkout), (str(checkout),), (str(checkout / ".git"),)), *bytecode))
    left = [path for path in (os.path.relpath(path, checkout) for path in found) if path not in kept]
    for path in left:
        target = checkout / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)  # bytecode that went with its folder
    return left


@contextmanager
def _git(checkout: Path, steps: Steps) -> Iterator[Callable[..., str]]:
    """git(*words, stdin="") in the checkout, under the user's configuration for the network and none that could run or
    change something."""
    own = checkout.parent / "gitconfig"  # a mirror in a folder may be another user's
    home = os.environ.get("GIT_CONFIG_GLOBAL") or os.path.expanduser("~/.gitconfig")
    own.write_text(f"[include]\n\tpath = {home}\n[safe]\n\tdirectory = *\n")
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(("GIT_SSL", "GIT_SSH"))
    }
    variables |= {"GIT_CONFIG_GLOBAL": str(own), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | _BASE
    settings = [part for pair in _SET for part in ("-c", pair)]
    yield lambda *words, stdin="": steps.run(
        f"git {words[0]}", ["git", *settings, *words], environment=variables, cwd=checkout, stdin=stdin
    )
    own.unlink()


def _fetch(source: str, commit: str, checkout: Path, config: EnvironmentsConfig, git: Callable[..., str]) -> str:
    """The whole id of the commit, whose objects are then there, from the first mirror that has it: over the network, or
    lent by a mirror in a folder."""
    failed = []
    for place, wanted in [(place, wanted) for own, wanted in _copies(source, commit) for place in _places(own, config)]:
        lent = checkout / ".git/objects/info/alternates"
        try:
            if place.startswith(("/", ".")):
                objects = next(
                    (path for path in (Path(place, "objects"), Path(place, ".git/objects")) if path.is_dir()), None
                )
                if objects is None:
                    raise StepError("no such repository")
                lent.parent.mkdir(exist_ok=True)
                lent.write_text(f"{objects.absolute()}\n")
                found = (
                    _tip(git, place, wanted)
                    if wanted.startswith("refs/")
                    else git("rev-parse", "--verify", wanted + "^{commit}").strip()
                )
            else:
                found = wanted if len(wanted) == 40 else _tip(git, place, wanted)
                git(
                    "fetch",
                    "-q",
                    "--depth=1",
                    "--no-tags",
                    "--no-recurse-submodules",
                    "--no-write-commit-graph",
                    place,
                    found,
                )
            git("cat-file", "-e", found + "^{tree}")
            return found
        except StepError as error:
            failed.append(f"{place}: {error}")
            lent.unlink(missing_ok=True)
    raise StepError(f"no mirror has {source} at {commit[:12]} ({'; '.join(failed) or 'environments.mirrors is empty'})")


def _copies(source: str, commit: str) -> list[tuple[str, str]]:
    """(OWNER/NAME, commit or branch) of what holds the commit's files, best first. No server gives out a commit by some
    of its digits, but
    SWE-smith keeps a copy of each commit that its rows name so: https://github.com/swesmith, branch main; other
    branches hold its bugs."""
    copy = f"swesmith/{source.replace('/', '__')}.{commit[:8]}"
    return [(source, commit), *([(copy, "refs/heads/main")] if len(commit) < 40 else [])]


def _places(source: str, config: EnvironmentsConfig) -> list[str]:
    owner, _, name = source.partition("/")
    places = []
    for pattern in config.mirrors:
        try:
            places.append(os.path.expanduser(pattern.format(owner=owner, name=name)))
        except (KeyError, IndexError, ValueError) as error:
            raise StepError(f"environments.mirrors: {pattern!r} may hold {{owner}} and {{name}} only") from error
    return places


def _tip(git: Callable[..., str], place: str, wanted: str) -> str:
    """The commit of the branch `wanted`, or the one that a branch or tag has and whose id begins so. Raises
    StepError."""
    refs = [line.split("\t") for line in git("ls-remote", place).split("\n") if "\t" in line]
    found = {
        commit for commit, name in refs if (name == wanted if wanted.startswith("refs/") else commit.startswith(wanted))
    }
    if len(found) != 1:
        raise StepError(f"{'no' if not found else 'more than one'} branch or tag is {wanted}")
    return found.pop()


# ---- source distributions -------------------------------------------------------------------------------------------


def download(archive: Archive, folder: Path) -> Path:
    """The source distribution, fetched by pip from the index that the user configured, with its hash checked. Raises
    TaskError."""
    remedy = (
        "connect to the package index once (pip's own settings are used), or copy the environments folder "
        "from a machine that has it"
    )
    # Only this archive must be a source distribution: pip asks it for metadata, for which it fetches a build backend.
    options = ("--no-binary", archive.name)
    return pip_download(archive.name, archive.version, archive.sha256, folder, options, remedy)


def pip_download(name: str, version: str, sha256: str, folder: Path, options: tuple[str, ...], remedy: str) -> Path:
    """FOLDER/NAME/<the archive>. Raises TaskError, whose last words are `remedy`."""
    pin = f"{name}=={version}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{name}.txt"
    lock.write_text(f"{pin} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, *options, "--require-hashes", "-r", str(lock), "-d", str(folder / name)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TaskError(f"{pin}: no download within {DOWNLOAD_TIMEOUT_S:.0f} s: {remedy}") from None
    if done.returncode:
        why = cause.of_text(done.stderr.strip() or done.stdout) or "pip failed"
        raise TaskError(f"{pin} could not be downloaded ({why}): {remedy}")
    (path,) = (folder / name).iterdir()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise TaskError(f"{pin}: sha256 is {found}, the pin says {sha256}: the index serves another file, don't use it")
    return path


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """The kept entries, without the archive's top folder. Raises TaskError when one is missing."""
    for member, mode, data in _members(path):
        _, _, name = member.partition("/")
        if name and ".." not in name.split("/") and (not archive.keep or name.split("/")[0] in archive.keep):
            target = folder / name  # by hand: Debian 12's Python 3.11.2 has no extraction filters
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o644 | mode & 0o111)
    missing = [name for name in archive.keep or (".",) if not (folder / name).exists()]
    if missing:
        raise TaskError(f"{archive.name} {archive.version} holds no {', '.join(missing)}: correct `keep`")


def _members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(name, mode, content) of the regular files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if not info.is_dir():
                    yield info.filename, info.external_attr >> 16, file.read(info)
        return
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            if member.isfile():
                yield member.name, member.mode, tar.extractfile(member).read()


def fetch_distribution(source: str, sha256: str, keep: tuple[str, ...], checkout: Path) -> None:
    """`source` is NAME==VERSION. Raises StepError."""
    name, equals, version = source.partition("==")
    if not equals or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise StepError(f"sdist:{source} at {sha256!r}: write sdist:NAME==VERSION and a sha256")
    archive = Archive(name=name, version=version, sha256=sha256, keep=keep)
    downloads = checkout.parent / "downloads"
    downloads.mkdir()
    try:
        unpack(download(archive, downloads), archive, checkout)
    except TaskError as error:
        raise StepError(str(error)) from error
    shutil.rmtree(downloads)
