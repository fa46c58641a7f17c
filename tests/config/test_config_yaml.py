"""What a YAML says is what is read: YAML 1.2's core schema, no key twice, each mistake with its place."""

import re
from pathlib import Path

import pytest
import yaml
from config_helpers import Tree, refusal
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.cluster.site import Resources, SiteConfig, sbatch_parameters
from coderepairrl.config import load, yaml_core
from coderepairrl.errors import ConfigError


def read(text):
    return yaml_core.parse(text, lambda line: f"here:{line}")[0]


@pytest.mark.parametrize(
    "text",
    [
        "16:00",
        "12:30:00",
        "2024_06",
        "1_000",
        "on",
        "off",
        "yes",
        "No",
        "y",
        "n",
        "2024-06-01",
        "2001-12-14t21:59:43.1-05:00",
        "=",
        "0b11",
        "0o8",
        "1e",
        "1.2.3",
        "+.nan",
        "0x",
        "nUll",
        "tRUE",
        "1,000",
    ],
)
def test_what_no_core_schema_knows_is_a_text_as_it_was_written(text):
    assert read(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("3e10", 3e10),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2.5E+3", -2500.0),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("0", 0),
        ("-.INF", -float("inf")),
        ("true", True),
        ("False", False),
        ("NULL", None),
        ("~", None),
        ("", None),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("'1'", "1"),
        ("0.10", 0.1),
    ],
)
def test_the_core_schema_reads(text, value):
    assert repr(read(f"a: {text}")) == repr({"a": value})


@pytest.mark.parametrize(
    "text, line, cause",
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' stands twice"),
        ("x:\n  a: 1\n  b:\n    c: 1\n    c: 1", 5, "'c' stands twice"),
        ("x: {a: 1,\n    a: 1}", 2, "'a' stands twice"),
        ("- 1\n- {a: 1, a: 2}", 2, "'a' stands twice"),
        ("'a': 1\na: 1", 2, "'a' stands twice"),
        ("1: a\n0x1: b", 2, "'0x1' stands twice"),
        ("a: 1\n'b': {'c': 1, \"c\": 2}", 2, "'c' stands twice"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x", 4, "'<<' stands twice"),
        ("a: &x {b: 1, b: 2}\nc: {<<: *x}", 1, "'b' stands twice"),
        ("c: {<<: {b: 1, b: 2}}", 1, "'b' stands twice"),
        ("a: &x {b: 1}\nd: &y {b: 2}\nc: {<<: [*x, *y]}", 3, "'b' stands in two of the merged"),
        ("a: 010", 1, "octal to some"),
        ("a: -007", 1, "octal to some"),
        ("a: &x\n  b: *x", 1, "holds itself"),
        ("a: 1\n[b]: 2", 2, "can't be a list"),
        ("a: !!timestamp 2001-01-01", 1, "timestamp"),
        ("a: !!int 010", 1, "is no int"),
        ("a: !!python/name:os.system", 1, "python"),
        ("a: 1\n\nb: [", 3, "not valid"),
        ("a: 1\n---\nb: 1", 2, "another document"),
        ("a: \x01", 1, "U+0001"),
    ],
)
def test_what_is_ambiguous_is_refused_in_one_line_with_its_own(text, line, cause):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert (
        str(caught.value).startswith(f"here:{line}: ") and cause in str(caught.value) and "\n" not in str(caught.value)
    )


def test_what_stands_beside_a_merged_mapping_wins_and_says_so_itself():
    value, places = yaml_core.parse("a: &x {b: 1, c: 1}\nd: &y\n  e: 5\nf:\n  <<: [*x, *y]\n  b: 2", lambda line: line)
    assert value["f"] == {"b": 2, "c": 1, "e": 5}
    assert (places["f", "b"], places["f", "c"], places["f", "e"]) == (6, 1, 3)


TEXTS = st.one_of(
    st.text(),
    st.from_regex(r"[-+]?0?[oxb]?[0-9_]{1,6}([:.][0-9]{0,3}){0,3}([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(
        "on off yes no y N TRUE null ~ = << .inf -.INF .nan 16:00 1e3 0o10 010 2024-06-01 --- ... - ? : #a &a *a "
        "{run} a:_b a_#b 0b1".replace("_b", " b").split()
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, st.booleans())
def test_what_is_written_is_read_back_the_same_by_us_and_by_yaml_1_1(value, flow):
    text = yaml_core.dump(value, flow)
    assert repr(read(text)) == repr(value) == repr(yaml.safe_load(text))
    assert not flow or "\n" not in text  # as an override on a command line


@pytest.fixture
def write(tmp_path):
    def run(text, name="tree.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    "text, line",
    [
        ("name: x\nstepz: 4", 2),
        ("name: x\nleaf:\n  rate: 1\n  word: green", 4),
        ("name: x\nleaf:\n  betas: [1]", 3),
        ("name: x\nleaves:\n- {rate: 1}\n- {rat: 1}", 4),
        ("name: x\nanimal:\n  kind: dog\n  barks: 3", 4),
        ("\n\nname:", 3),
        ("name: x\nsteps: 0", 2),
        ("name: x\nnamed:\n  a:\n    word: 3", 4),
        ("name: x\nbase: 3", 2),
        ("name: x\nweights:\n  a: 1\n  b: .nan", 4),
    ],
)
def test_a_mistake_names_its_line(write, text, line):
    path = write(text)
    assert refusal(path).startswith(f"{path}:{line}: ")


def test_a_mistake_blames_who_made_it(write):
    far = write("name: x\nleaf:\n  rate: many\nleaves: [{rate: 1}, {rate: 2}]\n", "far.yaml")
    near = write("base: far.yaml\nsteps: 3\n", "near.yaml")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(far))}:3: leaf.rate: "):
        load(Tree, near)
    assert refusal(near, "leaf.rate=0.5", "steps=-1").startswith("override 'steps=-1': steps: ")
    assert refusal(near, "leaf.rate=0.5", "leaf={rate: x}").startswith("override 'leaf={rate: x}': leaf.rate: ")
    assert refusal(near, "leaf.rate=0.5", "leaf.rate=x").startswith("override 'leaf.rate=x': leaf.rate: ")
    assert refusal(near, "leaf={rate: 1, rate: 2}").startswith(
        "override 'leaf={rate: 1, rate: 2}': not valid YAML: the key 'rate' stands twice"
    )
    replaced = write("base: far.yaml\nleaf: {rate: 1}\nleaves:\n- {rate: x}\n", "replaced.yaml")
    assert refusal(replaced).startswith(f"{replaced}:4: leaves.0.rate: ")
    assert refusal(write("steps: 3\n", "lacks.yaml")) == f"{replaced.parent}/lacks.yaml: name: Field required"


@pytest.mark.parametrize(
    "text, says",
    [
        ("steps: '3'", "without quotes"),
        ("steps: 2.5", "digits only"),
        ("steps: 2.0", "digits only"),
        ("steps: true", "integer"),
        ("steps: 1_000", "without _"),
        ("steps: [3]", "integer"),
        ("steps:", "got None"),
        ("leaf: {rate: '1'}", "without quotes"),
        ("leaf: {rate: true}", "number"),
        ("leaf: {rate: .inf}", "finite"),
        ("leaf: {rate: .nan}", "finite"),
        ("leaf: {betas: 1}", "list"),
        ("animal: {kind: dog, barks: 1}", "true or false"),
        ("animal: {kind: dog, barks: on}", "true or false"),
        ("name: 3", "quotes"),
        ("name: true", "quotes"),
        ("name: 1.10", "quotes"),
        ("leaves: {rate: 1}", "list"),
        ("leaf: [1]", "dictionary"),
        ("weights: {a: b}", "number"),
    ],
)
def test_nothing_is_converted_that_could_mean_something_else(write, text, says):
    message = refusal(write((text if text.startswith("name") else f"name: x\n{text}") + "\n"))
    assert says in message, message


def test_a_whole_number_is_a_number(write):
    assert load(Tree, write("name: x\nleaf: {rate: 1, betas: [0, 1]}\n")).leaf.rate == 1.0


def test_a_section_that_is_null_may_be_filled_by_an_override(write):
    assert load(Tree, write("name: x\nmaybe:\n"), ["maybe.word=blue"]).maybe.word == "blue"


def test_sbatch_gets_what_was_written(write):
    site = load(
        SiteConfig,
        write(
            "sbatch: {begin: 16:00, deadline: 12:30:00, reservation: 2024_06, mail-type: NONE, nice: 5, hold: "
            "true, contiguous: false}\n"
        ),
    )
    extra = sbatch_parameters(site, Resources(), "job", Path("/run"), Path("/code"))["additional_parameters"]
    assert {key: extra[key] for key in ("begin", "deadline", "reservation", "nice", "hold")} == {
        "begin": "16:00",
        "deadline": "12:30:00",
        "reservation": "2024_06",
        "nice": 5,
        "hold": True,
    } and "contiguous" not in extra
    assert re.search(
        r"sbatch.version: .*quotes", refusal(write("sbatch: {version: 1.10}\n", "b.yaml"), model=SiteConfig)
    )
