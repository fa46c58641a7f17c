"""Where a build runs: the machine as it is but read-only, with what is being built at the path that it will have.

So what an installation writes down (the first line of a script, the place of an editable checkout) is right in every
sandbox.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.environments.cache import StepError, Steps

_LEFT_OUT = {"proc", "dev", "sys", "tmp"}


@dataclass(frozen=True)
class BuildMount:
    """`binds`: folder on the host -> writable path inside. `cache` is hidden, but for those."""

    steps: Steps
    cache: Path
    binds: dict[Path, str]
    readable: tuple[Path, ...]  # what a build needs of /tmp or of the cache
    cwd: str

    def run(self, what: str, argv: list[str], environment: dict[str, str], *, network: bool, stdin: str = "") -> str:
        """stdout. Raises StepError."""
        tool = shutil.which("bwrap")
        if tool is None:
            raise StepError("building needs bubblewrap (Debian: apt install bubblewrap), on the machine that builds")
        words = [
            tool,
            "--die-with-parent",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            *([] if network else ["--unshare-net"]),
            "--cap-drop",
            "ALL",
        ]
        for name in sorted(set(os.listdir("/")) - _LEFT_OUT):
            if os.path.islink(f"/{name}"):
                words += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
            elif os.path.isdir(f"/{name}"):
                words += ["--ro-bind", f"/{name}", f"/{name}"]
        words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", str(self.cache)]
        for path in self.readable:
            words += ["--ro-bind", str(path), str(path)]
        for host, inside in self.binds.items():
            words += ["--bind", str(host), inside]
        return self.steps.run(what, [*words, "--chdir", self.cwd, "--", *argv], environment=environment, stdin=stdin)


def build_variables(venv: str, uv: str) -> dict[str, str]:
    """The user's own (proxies, certificates, the package index), less what would lead to another Python; the
    environment first on PATH."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA", "UV_PROJECT", "PYENV", "GIT_"))
    }
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    own = {
        "PATH": f"{venv}/bin:{os.path.dirname(uv)}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "VIRTUAL_ENV": venv,
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_NO_CACHE_DIR": "1",
        "UV_NO_PROGRESS": "1",
    }
    return kept | git | own
