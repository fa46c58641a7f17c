"""How one version of a repository is built, before it is known which of its commits."""

from coderepairrl.config import Config

INSTALL = "python -m pip install --no-deps --no-build-isolation --disable-pip-version-check -e ."
BUILD_TOOLS = ("pip", "setuptools", "wheel")


class BuildRow(Config):
    """The fields of types.Recipe that a commit doesn't change; `requirements` lack what builds the project."""

    versions: str = ""  # such as ">=2,<2.3"
    python: str
    requirements: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    preferred: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    build: tuple[str, ...] = (INSTALL,)
    left_out: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # of the build and of the tests; {version} is the row's
    not_before: str = ""  # ISO date and time: resolved as of the row's date, but of no earlier one


class Correction(Config):
    """What a published specification needs to be built without conda and root."""

    versions: str = ""  # such as ">=2,<2.3"
    packages: tuple[str, ...] | None = None  # instead of the specification's packages
    without: tuple[str, ...] = ()  # names of packages that are left out
    requirements: tuple[str, ...] = ()  # in addition
    python: str = ""  # instead of the specification's
    variables: dict[str, str] = {}  # in addition
