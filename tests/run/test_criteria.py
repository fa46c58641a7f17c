"""Claims written before the run: their verdicts, and that they can't be changed afterwards."""

import pytest
from conftest import ROOT

from coderepairrl.errors import ConfigError
from coderepairrl.run import criteria
from coderepairrl.run.comparison import Comparison
from coderepairrl.run.criteria import Criterion
from coderepairrl.run.intervals import Interval


def found(gain, discordant=0.2, tasks=500):
    interval = Interval(gain, gain - 0.03, gain + 0.03)
    return Comparison(tasks, interval, interval, interval, interval, 0, 0, 0.01, discordant)


@pytest.mark.parametrize(
    "at_least, gain, p, met, words",
    [
        (0.05, 0.07, 0.01, True, "met"),
        (0.05, 0.04, 0.001, False, "missed: too small"),
        (0.05, 0.07, 0.2, False, "missed: may be chance (p 0.2)"),
        (0.0, 0.01, 0.01, True, "met"),
        (0.0, 0.0, 1.0, False, "missed: no gain"),
        (0.0, -0.1, 0.001, False, "missed: no gain"),
    ],
)
def test_a_criterion_is_met_by_a_gain_that_is_large_enough_and_no_chance(at_least, gain, p, met, words):
    verdict = Criterion(benchmark="verified", at_least=at_least).verdict(found(gain), p)
    assert (verdict.met, verdict.words) == (met, words)
    assert (verdict.power is None) == met


def test_a_missed_one_says_how_likely_it_was_to_be_seen():
    criterion = Criterion(benchmark="verified", at_least=0.05)
    few, many = (criterion.verdict(found(0.02, tasks=tasks), 0.5).power for tasks in (40, 2000))
    assert few < 0.2 < 0.95 < many
    assert criterion.verdict(found(0.0, discordant=0.01), 1.0).power is None, "five points cannot be had there"


def test_the_criteria_of_the_project_can_be_read():
    for path in sorted((ROOT / "configs/criteria").glob("*.yaml")):
        assert criteria.read(path).criteria


def test_criteria_are_registered_before_a_run_and_never_changed(tmp_path):
    path, run = tmp_path / "thesis.yaml", tmp_path / "runs" / "a"
    path.write_text("name: thesis\ncriteria: {java: {benchmark: quixbugs_java}}\n")
    criteria.register(path, run)
    (run / "rollouts").mkdir()
    criteria.register(path, run)  # submitted again
    assert criteria.registrations(path, [tmp_path / "runs"]) == []
    path.write_text(path.read_text().replace("quixbugs_java", "quixbugs"))
    with pytest.raises(ConfigError, match="submitted with others"):
        criteria.register(path, run)
    (line,) = criteria.registrations(path, [run])
    assert "registered others" in line
    other = tmp_path / "runs" / "b"
    (other / "rollouts").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has begun without any"):
        criteria.register(path, other)
    assert "not registered" in criteria.registrations(path, [other])[0]
