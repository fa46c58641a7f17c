"""Shared by several tests: test_cluster.py and others."""

import os
from pathlib import Path

from conftest import ROOT

IMAGES = Path(os.environ.get("CODEREPAIRRL_IMAGES", ROOT / "images"))


RESULTS = Path(os.environ.get("CODEREPAIRRL_RESULTS", ROOT / "runs"))
