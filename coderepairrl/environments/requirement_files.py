"""Requirement files and conda environments of a checkout -> requirements that pip understands.

Two kinds of lines in `Recipe.requirements` name them, each with paths of which the first one that is there counts:

    --first-of requirements/dev.txt requirements.txt
    --conda ci/requirements/environment.yml environment.yml --without cdms2,hdf5
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from packaging.utils import canonicalize_name

from coderepairrl.environments.cache import StepError

NAMES = {  # conda's -> the index's
    "black-jupyter": "black[jupyter]",
    "dask-core": "dask",
    "iris": "scitools-iris",
    "matplotlib-base": "matplotlib",
    "pytables": "tables",
    "python-build": "build",
    "python-graphviz": "graphviz",
    "seaborn-base": "seaborn",
}
# libraries and programs that are no Python packages, and packages that the index lacks
CONDA_ONLY = {
    *("c-compiler", "cxx-compiler", "compilers", "gcc", "gxx", "make", "cmake", "pkg-config", "nodejs", "yarn"),
    *("hdf5", "libnetcdf", "eccodes", "proj", "geos", "gdal", "cdms2", "pynio", "esmpy", "pandoc", "graphviz"),
    *(
        "imagemagick",
        "ffmpeg",
        "libgdal",
        "openjdk",
        "mkl",
        "blas",
        "texlive-core",
        "pyqt",
        "qt",
        "firefox",
        "geckodriver",
    ),
}
_SELF = re.compile(r"(?:-e\s*|--editable[\s=]+)?\.(?:\[[^]]*\])?")


def expand(lines: Iterable[str], checkout: Path, preferred: Iterable[str]) -> list[str]:
    """Lines of these kinds replaced by what their files say, others as they are. Of a package that has a preferred pin
    only the name is taken from a file. Raises StepError."""
    pinned = {_name(pin) for pin in preferred}
    found: list[str] = []
    for line in lines:
        kind, *words = line.split()
        if kind not in ("--first-of", "--conda"):
            found.append(line)
            continue
        paths, without = _read_words(words)
        path = next((checkout / path for path in paths if (checkout / path).is_file()), None)
        if path is None:
            raise StepError(f"the checkout has no {' and no '.join(paths)}: give its packages in recipes.yaml")
        read = _conda(path, without) if kind == "--conda" else _pip(path, checkout)
        kept = (one for one in read if _name(one) not in without)
        found += [_name(one) if _name(one) in pinned else one for one in kept]
    return found


def _read_words(words: list[str]) -> tuple[list[str], set[str]]:
    if "--without" not in words:
        return words, set()
    place = words.index("--without")
    return words[:place], {_name(name) for name in words[place + 1].split(",")}


def _pip(path: Path, checkout: Path) -> Iterator[str]:
    """The lines of the file and of those that it names; the project itself is no requirement."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StepError(f"{path.name}: {error}") from error
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(?:^|\s)#.*", "", line).strip()
        other = re.match(r"(?:-r|--requirement)[\s=]*(\S+)", line)
        if other:
            yield from _pip(path.parent / other[1], checkout)
        elif line.startswith(("-c", "--constraint")):
            continue  # they hold for what the project resolved on that day; the day does that here
        elif line and not _SELF.match(line):
            yield re.sub(r"\s--hash=\S+", "", line).strip()


def _conda(path: Path, without: set[str]) -> Iterator[str]:
    try:
        tree = yaml.safe_load(path.read_text())
        dependencies = list(tree["dependencies"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise StepError(f"{path.name} is no conda environment: {error}") from error
    only: list[str] = []
    for entry in dependencies:
        if isinstance(entry, dict):
            yield from (line for line in entry.get("pip", ()) if not _SELF.match(line))
            continue
        text = str(entry).split("::")[-1].split(" #")[0].strip()
        name = _name(text)
        if name in ("python", "pip") or name in without:
            continue
        if name in CONDA_ONLY:
            only.append(name)
        yield NAMES.get(name, name) + _version(text[len(re.match(r"[\w.-]*", text)[0]) :])
    if only:
        raise StepError(f"only conda has {', '.join(only)} of {path.name}: use `environments: images`")


def _version(text: str) -> str:
    """conda's "=1.2", "=1.2.*=py39" and ">=1,<2" as pip writes them."""
    text = text.replace(" ", "")
    single = re.fullmatch(r"=([^=<>!~,*]+)(?:\.\*)?(?:=[^=]*)?", text)
    return f"=={single[1]}.*" if single else text


def _name(requirement: str) -> str:
    return canonicalize_name(re.match(r"[\w.-]*", requirement.strip())[0])
