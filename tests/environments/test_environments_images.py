"""Environments from images: folders, SIF files, and archives that the tests make."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from environments_helpers import built, git, in_sandbox
from sandbox_helpers import needs_apptainer

from coderepairrl.environments import BuildError, EnvironmentsConfig
from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Environment


@pytest.fixture(scope="module")
def sif(image_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("sif") / "image.sif"
    subprocess.run(["apptainer", "-q", "build", path, image_root], check=True)
    return path


def check_image(image, kind, tmp_path):
    config = EnvironmentsConfig(cache=str(tmp_path / "cache"))
    made = built(Environment("imaged", None, "", ("{python}",), image=str(image)), config)
    base = Path(made.base)
    assert (made.workdir, made.python, made.variables["CONDA_DEFAULT_ENV"]) == (
        "/testbed",
        "/opt/env/bin/python",
        "testbed",
    ) and made.lock
    assert (
        git(base, "rev-list", "--all", "--count") == "1"
        and git(base, "ls-files") == "src/module.py"
        and (base / "built").read_text() == "compiled\n"
    )
    assert (
        b"the fix"
        not in subprocess.run(
            "git cat-file --batch-all-objects --batch", shell=True, cwd=base, capture_output=True
        ).stdout
    )
    look = (
        "pwd; cat src/module.py; command -v python; python -c 'import sys; print(sys.version_info[0])'; id -un;"
        " ls /"
        "root /opt; git log --oneline"
    )
    output = in_sandbox(made, look, tmp_path, kind)
    assert (
        output.startswith("/testbed\nvalue = 1\n")
        and "/opt/env/bin/python\n3\nagent\n" in output
        and "miniconda3" in output
    ), output
    assert "json" in interpreter(made.python, made.image).modules
    assert built(Environment("imaged", None, "", ("{python}",), image=str(image)), config) == made


def test_a_folder_is_an_image_for_bubblewrap(image_root, tmp_path):
    check_image(image_root, "bubblewrap", tmp_path)


@needs_apptainer
def test_a_sif_is_an_image_for_apptainer(sif, tmp_path):
    check_image(sif, "apptainer", tmp_path)


@needs_apptainer
def test_a_sif_is_refused_by_what_cannot_run_it(sif, tmp_path):
    made = built(
        Environment("imaged", None, "", ("{python}",), image=str(sif)),
        EnvironmentsConfig(cache=str(tmp_path / "cache")),
    )
    for kind, remedy in (("bubblewrap", "environments.image_format=folder"), ("local", "sandbox.kind to apptainer")):
        with pytest.raises(SandboxError, match=remedy):
            in_sandbox(made, "true", tmp_path, kind)


@needs_apptainer
@pytest.mark.parametrize("kept_as", ["sif", "folder"])
def test_a_named_image_is_converted_once(image_root, tmp_path, kept_as, monkeypatch):
    """No registry here: an OCI archive is what `docker://` is to Apptainer but for the download."""
    layout = tmp_path / "oci"
    oci_archive(image_root, layout)
    config = EnvironmentsConfig(cache=str(tmp_path / "cache"), image_format=kept_as)
    monkeypatch.setenv("APPTAINER_CACHEDIR", str(tmp_path / "layers"))
    made = built(Environment("imaged", None, "", ("{python}",), image=f"oci://{layout}"), config)
    assert Path(made.image).is_relative_to(tmp_path / "cache/images") and Path(made.image).is_dir() == (
        kept_as == "folder"
    )
    assert (
        in_sandbox(made, "cat src/module.py", tmp_path, "apptainer" if kept_as == "sif" else "bubblewrap")
        == "value = 1\n"
    )


@pytest.mark.parametrize(
    ("image", "config", "cause"),
    [
        ("/no/such.sif", {}, "does not exist"),
        ("{root}", {"activation": "false"}, "activating the environment"),
        ("{empty}", {}, "no checkout in the image at /repo"),
    ],
)
def test_images_that_cannot_be_used_are_named(image_root, tmp_path, image, config, cause):
    empty = tmp_path / "empty"
    shutil.copytree(image_root, empty, symlinks=True, ignore=shutil.ignore_patterns("testbed"))
    with pytest.raises(BuildError, match=cause):
        built(
            Environment("imaged", None, "", (), image=image.format(root=image_root, empty=empty)),
            EnvironmentsConfig(cache=str(tmp_path / "cache"), **config),
        )


def oci_archive(root, layout):
    """An OCI image layout with one layer."""
    import hashlib

    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data):
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    layer = subprocess.run(
        ["tar", "--owner=0", "--group=0", "-C", str(root), "-cf", "-", "."], check=True, capture_output=True
    ).stdout
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "config": {},
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": f"{kind}.config.v1+json", **put(json.dumps(config).encode())},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", **put(layer)}],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": f"{kind}.manifest.v1+json", **put(json.dumps(manifest).encode())}],
    }
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
