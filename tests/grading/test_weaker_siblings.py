"""Weakenings and honest edits of the same files, of which none is in the code by name: weakenings/, one file a tool."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from weaker_helpers import named

from coderepairrl.grading.validation.weaker import weaker

TABLES = Path(__file__).with_name("weakenings")


def edits(kind: str) -> Iterator[tuple[str, str | None, str]]:
    """(path, before, after) of the "weakened" or the "honest" ones; before None: the file is new."""
    for table in sorted(TABLES.glob("*.yaml")):
        for path, found in yaml.safe_load(table.read_text()).get(kind, {}).items():
            yield from ((path, edit["before"], edit["after"]) for edit in found)


def test_each_table_has_both_kinds_or_one():
    kinds = {table.stem: set(yaml.safe_load(table.read_text())) for table in TABLES.glob("*.yaml")}
    assert kinds and all(found and found <= {"weakened", "honest"} for found in kinds.values()), kinds


@pytest.mark.parametrize("edit", edits("weakened"), ids=lambda edit: edit[0])
def test_a_weakened_build_is_named(edit):
    assert named(edit)


@pytest.mark.parametrize("edit", edits("honest"), ids=lambda edit: edit[0])
def test_an_edit_for_a_good_reason_is_no_finding(edit):
    assert weaker(*edit) == []
