"""Copies of the project under repair, in any version, in what its sandboxes show beside the checkout: whoever can read
one can copy the repair from there.

    find("/base/checkout", ["/usr", "/env/venv"])   ->   ("/env/venv/lib/python3.11/site-packages/cachetools/", ...)

What is looked at is code: packages and modules by their import names wherever they lie (a dependency of another
package, one vendored by a tool, one in a zip), whole folders of modules by their files' names when the folder is
called otherwise, compiled modules, and distributions by the project's name. A name alone convicts only where an
interpreter would import it from; elsewhere, where `validators.py` may be anybody's, a good part of the lines has to be
the project's. Only the standard library is used, nothing of this project: it also runs in an image, by its Python.
"""

import configparser
import functools
import json
import os
import re
import sys
import zipfile
from collections import defaultdict

SOURCES = ("", "src", "lib", "python")  # folders of a checkout that hold its top-level modules
OTHERS = {  # top-level folders and modules of a checkout that are not what its users import
    "test",
    "tests",
    "testing",
    "doc",
    "docs",
    "example",
    "examples",
    "benchmark",
    "benchmarks",
    "script",
    "scripts",
    "tool",
    "tools",
    "setup",
    "conftest",
    "versioneer",
    "noxfile",
    "tasks",
    "build",
    "dist",
    "bin",
    "ci",
    "setuptools",
    "ez_setup",
    "utils",
    "util",
    "manage",
    "test_requirements",
    "requirements",
}
FOREIGN = {
    "_vendor",
    "vendor",
    "vendored",
    "_vendored",
    "extern",
    "externals",
    "third_party",
    "test",
    "tests",
    "testing",
}
SITES = ("site-packages", "dist-packages")
ARCHIVES = (".whl", ".zip", ".egg", ".pyz")
TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # source distributions, told by their names
COMPILED = (".so", ".pyc", ".pyd")
SHORTEST = 12  # characters of a line that says something
FEW = 10  # lines that say something; of less no share is worth anything
SHARE_BY_NAME, SHARE_BY_FILES, SHARE_OF_ANOTHER = 0.3, 0.5, 0.05
MODULES = 3  # of a folder that is recognised by its files' names
LARGEST = 4 << 20  # bytes of a file that is read


@functools.lru_cache(maxsize=4096)  # asked for every sandbox; what is installed does not change under a program
def find(checkout, folders, skip=()):
    """Paths of folders, with a slash at their end, and of files, none below another. `skip`: is not looked into."""
    project = _project(checkout)
    found = {path for folder in folders for path in _in_folder(project, _index(folder, skip))}
    outermost = sorted(path for path in found if not any(above in found for above in _above(path)))
    return tuple(path + "/" if os.path.isdir(path) else path for path in outermost)


# ---- what the project consists of


class _Project:
    def __init__(self, checkout):
        self.modules = {}  # import name -> its lines
        self.folders = []  # (the names of the modules of one folder, the folder's lines)
        self.names = frozenset(_normal(name) for name in _declared_names(checkout))
        for source in SOURCES:
            self._add_modules(os.path.join(checkout, source))

    def _add_modules(self, root):
        if not os.path.isdir(root):
            return
        for name in sorted(os.listdir(root)):
            path, stem = os.path.join(root, name), name[:-3] if name.endswith(".py") else name
            if stem in OTHERS or stem.startswith((".", "test_")) or not stem.isidentifier():
                continue
            if os.path.isfile(os.path.join(path, "__init__.py")):
                self.modules.setdefault(stem, set()).update(_lines_of(path))
                self._add_folders(path)
            elif name.endswith(".py") and os.path.isfile(path):
                self.modules.setdefault(stem, set()).update(_lines(path))

    def _add_folders(self, top):
        for where, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name not in FOREIGN]
            modules = frozenset(name for name in files if name.endswith(".py") and name != "__init__.py")
            if len(modules) >= MODULES:
                self.folders.append((modules, set().union(*(_lines(os.path.join(where, name)) for name in modules))))


@functools.lru_cache(maxsize=256)
def _project(checkout):
    return _Project(str(checkout))


def _declared_names(checkout):
    """Of the distribution, as far as it can be read without building it."""
    for name in ("pyproject.toml", "setup.py", "PKG-INFO"):
        path = os.path.join(checkout, name)
        if os.path.isfile(path):
            text = _text(path)
            section = (
                text
                if name != "pyproject.toml"
                else "".join(
                    re.findall(r"(?ms)^\[(?:project|tool\.poetry|tool\.flit\.metadata)\]\s*$(.*?)(?=^\[|\Z)", text)
                )
            )
            found = r"(?m)^Name:\s*()(\S+)" if name == "PKG-INFO" else r"(?m)\bname\s*=\s*(['\"])([A-Za-z0-9._-]+)\1"
            for match in re.finditer(found, section):
                yield match.group(2)
    path = os.path.join(checkout, "setup.cfg")
    if os.path.isfile(path):
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(_text(path))
        if parser.has_option("metadata", "name"):
            yield parser.get("metadata", "name")


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- what lies in a folder


class _Index:
    """Names of all that is code below a folder; links are not followed: what they lead to lies somewhere itself."""

    def __init__(self, folder, skip):
        self.folders = defaultdict(list)  # name -> paths of folders
        self.modules = defaultdict(list)  # import name -> paths of files
        self.files = {}  # folder -> its Python files
        self.archives = []
        self.tars = []
        self.metadata = []
        for where, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if os.path.join(where, name) not in skip]
            for name in folders:
                self.folders[name].append(os.path.join(where, name))
                if name.endswith((".dist-info", ".egg-info")):
                    self.metadata.append(os.path.join(where, name))
            for name in files:
                path = os.path.join(where, name)
                if name.endswith((".py",) + COMPILED):
                    self.modules[name.split(".")[0]].append(path)
                elif name.endswith(ARCHIVES) and not os.path.islink(path):
                    self.archives.append(path)
                elif name.endswith(TARS):
                    self.tars.append(path)
                elif name.endswith(".egg-info"):
                    self.metadata.append(path)
            self.files[where] = frozenset(name for name in files if name.endswith(".py"))


@functools.lru_cache(maxsize=16)
def _index(folder, skip):
    return _Index(folder, skip)


def _in_folder(project, index):
    for module, lines in project.modules.items():
        for name in (module, "_" + module, module.lstrip("_")):
            for path in index.folders.get(name, ()):
                if _is_copy_of(lines, path, _is_package(path, name, index)):
                    yield path
            for path in index.modules.get(name, ()):
                if not os.path.islink(path) and _is_module_of(lines, path):
                    yield path
                    yield from _bytecode(path, index)
    for names, lines in project.folders:
        for where, files in index.files.items():
            if len(files & names) * 2 >= len(names) and _share(lines, _lines_of(where, files)) >= SHARE_BY_FILES:
                yield where
    for path in index.archives:
        if _holds(project, path):
            yield path
    for path in index.tars:
        if _normal(re.split(r"-\d", os.path.basename(path))[0]) in project.names:
            yield path
    for path in index.metadata:
        if _distribution(path) in project.names:
            yield from _code_of(path)


def _is_package(path, name, index):
    """Whether the folder, or one below it as in a source distribution, holds modules: /usr/lib holds none of `lib`."""
    return any(index.files.get(where) for where in (path, *(os.path.join(path, below, name) for below in SOURCES)))


def _is_copy_of(lines, path, is_package):
    """Whether the folder of that name is the package in some version. Without sources its name alone says so."""
    at_top = os.path.basename(os.path.dirname(path)) in SITES
    if os.path.islink(path):
        return False
    if not at_top and (len(lines) < FEW or not is_package):  # nothing that lies there could tell
        return False
    own = _lines_of(path)
    if not own:
        return at_top and _holds_code(path)
    return _is_version(lines, own, at_top)


def _is_module_of(lines, path):
    folder = os.path.dirname(path)
    if os.path.basename(folder) == "__pycache__":  # what is left of a module whose source is gone
        folder = os.path.dirname(folder)
    at_top = os.path.basename(folder) in SITES
    if path.endswith(COMPILED):
        return at_top
    return _is_version(lines, _lines(path), at_top)


def _is_version(lines, own, at_top):
    if min(len(lines), len(own)) < FEW:
        return at_top
    return _share(lines, own) >= (SHARE_OF_ANOTHER if at_top else SHARE_BY_NAME)


def _share(lines, own):
    common = len(lines & own)
    return common / max(1, min(len(lines), len(own))) if common >= FEW else 0.0


def _holds_code(folder):
    return any(name.endswith((".py",) + COMPILED) for _, _, files in os.walk(folder) for name in files)


def _bytecode(path, index):
    """Of a module by its file: its code lies beside it, too."""
    folder, stem = os.path.join(os.path.dirname(path), "__pycache__"), os.path.basename(path).split(".")[0]
    return [one for one in index.modules.get(stem, ()) if os.path.dirname(one) == folder]


def _holds(project, path):
    """Whether a zip has one of the packages in it; who calls another format so has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".py") and info.file_size < LARGEST]
        for module, lines in project.modules.items():
            inside = re.compile(r"(?:^|/)_?%s(?:\.py$|/)" % re.escape(module))
            mine = [info for info in members if inside.search(info.filename)]
            own = set().union(*(_said(archive.read(info).decode("utf-8", "replace")) for info in mine))
            if mine and _is_version(lines, own, min(len(lines), len(own)) < FEW):
                return True
    return False


def _distribution(path):
    """The normalised name of what this metadata is of."""
    file = next((one for one in (path, path + "/METADATA", path + "/PKG-INFO") if os.path.isfile(one)), None)
    found = re.search(r"(?m)^Name:\s*(\S+)", _text(file)) if file else None
    return _normal(found.group(1)) if found else ""


def _code_of(metadata):
    """Top-level packages and modules that a distribution says are its own; none of an editable one, which is a path."""
    site, record = os.path.dirname(metadata), os.path.join(metadata, "RECORD")
    rows = _text(record).splitlines() if os.path.isfile(record) else ()
    tops = {row.split(",")[0].strip('"').split("/")[0] for row in rows if ".py" in row or ".so" in row}
    tops |= (
        set(_text(os.path.join(metadata, "top_level.txt")).split())
        if os.path.isfile(os.path.join(metadata, "top_level.txt"))
        else set()
    )
    for top in sorted(tops):
        for path in (os.path.join(site, top), os.path.join(site, top + ".py")):
            known = top.startswith(("__editable__", "..", "__pycache__")) or path.endswith(
                (".dist-info", ".egg-info", ".pth")
            )
            if not known and os.path.exists(path) and not os.path.islink(path):
                yield path


# ---- lines


def _lines_of(folder, files=None):
    """Of a folder's Python files, or of those of a whole tree."""
    if files is not None:
        return set().union(*(_lines(os.path.join(folder, name)) for name in files))
    found = set()
    for where, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".py"):
                found |= _lines(os.path.join(where, name))
    return found


def _lines(path):
    return _said(_text(path)) if os.path.isfile(path) and os.path.getsize(path) < LARGEST else set()


def _said(text):
    """Lines that would hardly be the same in another project."""
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if len(line) >= SHORTEST and not line.startswith(("#", "import ", "from "))}


def _text(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _above(path):
    while os.path.dirname(path) != path:
        path = os.path.dirname(path)
        yield path


if __name__ == "__main__":  # checkout, folders to skip, folders: as JSON
    _checkout, _skip, _folders = (json.loads(word) for word in sys.argv[1:])
    print(json.dumps(find(_checkout, tuple(_folders), tuple(_skip))))
