"""What is installed, and on which hardware, is said as it is."""

import re
import sys

import pytest

from coderepairrl.files import ROOT
from coderepairrl.run import provenance


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", provenance.LOCKS)
def test_the_lock_that_is_installed_is_named(name):
    installed = {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pins(name).items()}
    said = provenance.lock(installed)
    assert (said["lock"], said["differences"], len(said["sha256"])) == (name, {}, 64)
    said = provenance.lock(installed | {"torch": "2.99.0+cu130", "transformers": installed["transformers"] + "+local"})
    assert (said["lock"], said["differences"]) == (name, {"torch": f"2.99.0+cu130 instead of {installed['torch']}"})


def test_this_environment_is_described():
    said = provenance.environment()
    assert (
        said["lock"]["lock"] in provenance.LOCKS
        and all(said["packages"].values())
        and len(said["lock"]["differences"]) < 20
    )
    assert said["cuda"] is None or said["packages"]["torch"].partition("+")[2] != "cpu"


def test_a_package_that_was_only_copied_is_one_without_metadata(tmp_path, monkeypatch):
    (tmp_path / "copied_package").mkdir()
    (tmp_path / "copied_package/__init__.py").write_text("raise RuntimeError('nobody imports it')")
    (tmp_path / "left-1.0.dist-info").mkdir()  # what is left of a removed one
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    installed = provenance._installed()
    assert provenance._difference("copied-package", "1.0", installed) == "without metadata"
    assert (
        provenance._difference("no-such-package", "1.0", installed) == "missing"
        and provenance._version("no-such-package", installed) is None
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'NVIDIA H200, 143771, 580.65.06'; echo 'NVIDIA H200, 143771, 580.65.06'",
            {"gpus": [{"name": "NVIDIA H200", "memory_gib": 140.4}] * 2, "driver": "580.65.06"},
        ),
        (
            "echo 'Orin (nvgpu), [N/A], 540.4.0'",
            {"gpus": [{"name": "Orin (nvgpu)", "memory_gib": None}], "driver": "540.4.0"},
        ),
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
            {
                "gpus": [],
                "gpus_unknown": "there are GPUs, but nvidia-smi "
                "fails: NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.",
            },
        ),
        (
            None,
            {
                "gpus": [],
                "gpus_unknown": "there are GPUs, but nvidia-smi does not answer: [Errno 2] No such file or directory: "
                "'nvidia-smi'",
            },
        ),
    ],
)
def test_gpus_are_named_or_why_they_are_not(script, said, tmp_path, monkeypatch):
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.gpus() == {"gpus": []} or provenance.has_gpu()
    monkeypatch.setattr(provenance, "has_gpu", lambda: True)
    assert provenance.gpus() == said


def test_an_image_that_cannot_be_asked_says_why(monkeypatch):
    said = provenance._inside("/no/such.sif")
    assert said["file"] == "/no/such.sif" and "does not exist" in said["error"]
