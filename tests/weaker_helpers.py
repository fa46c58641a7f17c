"""Shared by the tests of what makes tests, linters and builds ask for less."""

from coderepairrl.grading.validation.weaker import weaker


def named(edit):
    path, before, after = edit
    found = weaker(path, before, after)
    assert found and all(finding.startswith(f"{path}: ") for finding in found), (path, before, after)
    assert before is None or weaker(path, before, before) == []
    return True
