"""A grid's points: all combinations, each once, under names that don't change when the grid grows; every mistake is one
line."""

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.cluster.grid import GridConfig, Point, expand, fill, flatten
from coderepairrl.config import load
from coderepairrl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {
    "train": {
        "program": "scripts/train_grpo.py",
        "config": "configs/quickstart.yaml",
        "overrides": {"run": "{run}"},
        "arguments": ["rollout.seed={seed}"],
    }
}


def grid(**parts) -> GridConfig:
    return GridConfig.model_validate({"name": "g", "jobs": TRAIN} | parts)


def overrides(point: Point, job: int = 0) -> dict:
    return point.jobs[job].filled("/r", 0)[0]


keys = st.lists(st.sampled_from(["a.x", "b.x", "b.y", "c.b.y", "rate"]), unique=True, max_size=3)
values = st.lists(
    st.one_of(
        st.integers(-3, 9),
        st.booleans(),
        st.sampled_from(["red", "p/q.yaml", "2.5"]),
        st.sampled_from([1e-4, 3e-6, 0.5]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda value: str(value).lower(),
)


@st.composite
def grids(draw) -> GridConfig:
    chosen = draw(keys)
    product = {key: draw(values) for key in chosen[:2]}
    zipped = [{key: draw(values) for key in chosen[2:]}] if chosen[2:] else []
    variants = draw(st.sampled_from([{}, {"one": {"v": 1}, "two": {"v": {"w": 2}}}]))
    return grid(
        product=product,
        zip=zipped,
        variants=variants,
        seeds=draw(st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True)),
    )


@given(grids())
def test_every_combination_is_there_once_under_its_own_name(given_grid):
    points = expand(given_grid)
    rows = [len(next(iter(columns.values()))) for columns in given_grid.zip]
    assert len(points) == max(1, len(given_grid.variants)) * len(given_grid.seeds) * _times(rows) * _times(
        len(v) for v in given_grid.product.values()
    )
    assert len({point.name for point in points}) == len(points)
    varied = [
        tuple(sorted((key, str(value)) for key, value in overrides(point).items())) + (point.jobs[0].seed,)
        for point in points
    ]
    assert len(set(varied)) == len(points)
    for point in points:
        assert all(overrides(point)[key] in given_grid.product[key] for key in given_grid.product)


def _times(numbers) -> int:
    out = 1
    for number in numbers:
        out *= number
    return out


@given(grids(), st.randoms(use_true_random=False))
def test_a_grid_that_grows_keeps_its_points(given_grid, random):
    """More seeds and values add points; the former keep name and configuration, in whatever order the new ones
    stand."""
    before = {point.name: overrides(point) for point in expand(given_grid)}
    product = {key: [*values, "new"] for key, values in given_grid.product.items()}
    for values in product.values():
        random.shuffle(values)
    grown = given_grid.model_copy(update={"seeds": [99, *given_grid.seeds], "product": product})
    after = {point.name: overrides(point) for point in expand(grown)}
    assert len(after) > len(before) and all(after[name] == held for name, held in before.items())


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
        max_leaves=8,
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_flatten_keeps_every_leaf(tree):
    def leaves(node, path=()):
        return (
            [leaf for key, inner in node.items() for leaf in leaves(inner, (*path, key))]
            if isinstance(node, dict)
            else [(".".join(path), node)]
        )

    assert sorted(flatten(tree).items()) == sorted(leaves(tree))


def test_zip_walks_together_product_multiplies_and_what_is_nearer_wins():
    made = expand(
        grid(
            zip=[{"size": [8, 16], "groups": [32, 16]}],
            product={"rate": [1, 2]},
            variants={"low": {"size": 1, "k": 5}},
            seeds=[3],
        )
    )
    assert [(overrides(p)["size"], overrides(p)["groups"], overrides(p)["rate"]) for p in made] == [
        (8, 32, 1),
        (8, 32, 2),
        (16, 16, 1),
        (16, 16, 2),
    ]
    assert all(overrides(p)["k"] == 5 for p in made)
    assert made[0].name == "low-size_8-groups_32-rate_1_seed3"


def test_names_are_short_and_tell_keys_with_the_same_end_apart():
    names = [
        point.name for point in expand(grid(product={"a.rate": [1e-4], "b.rate": [0.5], "data": ["deep/path/to.yaml"]}))
    ]
    assert names == ["a.rate_0.0001-b.rate_0.5-data_to.yaml_seed0"]
    long = expand(grid(product={f"key_{i}": [f"{value}{i}" * 20 for value in "xy"] for i in range(3)}))
    assert len({point.name for point in long}) == 8 and all(
        len(point.name) < 110 and point.name.endswith("_seed0") for point in long
    )


def test_placeholders_become_values_with_their_types():
    jobs = TRAIN | {
        "evaluate": {
            "program": "p.py",
            "config": "c.yaml",
            "after": "train",
            "shards": 3,
            "arguments": ["--part", "{shard}"],
            "overrides": {
                "shard": "{shard}",
                "of": "{shards}",
                "seed": "{seed}",
                "out": ["{run}/e/{shard}_{seed}"],
                "kept": {"json": '{"a": 1}'},
            },
        }
    }
    evaluate = expand(grid(jobs=jobs, seeds=[7]))[0].jobs[1]
    assert evaluate.filled("/r", 2) == (
        {"shard": 2, "of": 3, "seed": 7, "out": ["/r/e/2_7"], "kept.json": '{"a": 1}'},
        ["--part", "2"],
    )
    assert (evaluate.folder("/r"), evaluate.shard_folder("/r", 2)) == ("/r/evaluate", "/r/evaluate/shard_2")
    assert flatten(yaml.safe_load("run: {run}")) == {"run": "{run}"}  # without quotes


def test_keys_of_other_jobs_are_named_with_their_job():
    jobs = TRAIN | {"evaluate": {"program": "p.py", "config": "c.yaml", "after": "train", "overrides": {"samples": 1}}}
    made = expand(grid(jobs=jobs, product={"evaluate:samples": [2, 4], "rate": [1]}))
    assert [(overrides(p, 0), overrides(p, 1)) for p in made] == [
        ({"run": "/r", "rate": 1}, {"samples": n}) for n in (2, 4)
    ]


def test_the_command_line_overrides_the_grid(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump({"name": "g", "jobs": TRAIN, "product": {"engine.rate": [1, 2]}}))
    made = expand(
        load(
            GridConfig,
            path,
            [
                "product.engine.rate=[5]",
                "seeds=[1,2]",
                "jobs.train.overrides.training.steps=9",
                "jobs.train.overrides.run=x/{run}",
            ],
        )
    )
    assert [(point.name, overrides(point)) for point in made] == [
        (f"rate_5_seed{seed}", {"run": "x//r", "training.steps": 9, "engine.rate": 5}) for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"seeds": [1, 1]}, "two runs of the grid are named run_seed1"),
        (
            {
                "seeds": [0, 1],
                "jobs": {
                    "train": {"program": "p.py", "config": "c.yaml", "overrides": {"run": "{run}", "a": "{shard}"}}
                },
            },
            "nothing uses {seed}",
        ),
        ({"product": {"model": ["a/x", "b/x"]}}, "two runs of the grid are named model_x_seed0"),
        ({"product": {"a": []}}, "a has no values"),
        ({"product": {"a": [1]}, "zip": [{"a": [2]}]}, "a varies in two places"),
        ({"zip": [{"a": [1, 2], "b": [1]}]}, "a has 2, b has 1"),
        ({"product": {"trian:a": [1]}}, "did you mean train:a?"),
        ({"name": "../up"}, "names a folder"),
        ({"jobs": TRAIN | {"evaluate": {"program": "p.py", "after": "trian"}}}, "name one of train"),
        ({"jobs": TRAIN | {"evaluate": {"program": "p.py"}}}, "name one of train"),
        ({"jobs": {"train": {"program": "p.py", "after": "train"}}}, "waits for none"),
        ({"jobs": {"train": {"program": "p.py", "overrides": {"a": 1}}}}, "overrides of which configuration"),
        ({"jobs": {"train": {"program": "p.py", "shards": 2, "nodes": {}}}}, "leave out nodes"),
    ],
)
def test_what_does_not_fit_together_is_one_line(parts, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?").replace("(", r"\(")) as error:
        expand(grid(**parts))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("jobs.train.minuts=3", "'minutes'"),
        ("sed=[1]", "'seeds'"),
        ("jobs.train.nodes.serv=2", "'serve'"),
        ("product.a=3", "valid list"),
    ],
)
def test_a_misspelt_key_names_the_nearest(override, said):
    with pytest.raises(ConfigError, match=said):
        load(GridConfig, ROOT / "configs" / "grid" / "thesis.yaml", [override])


def test_an_unknown_placeholder_names_the_nearest():
    with pytest.raises(ConfigError, match=r"\{runn\} is not known: did you mean \{run\}\?"):
        fill({"deep": ["x/{runn}"]}, {"run": "/r", "seed": 0})


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "grid").glob("*.yaml")), ids=lambda path: path.stem)
def test_example_grids_expand(path):
    loaded = load(GridConfig, path)
    points = expand(loaded)
    first = next(iter(loaded.jobs.values()))
    once = [name for name in loaded.variants if first.variants is not None and name not in first.variants]
    rows = (max(1, len(loaded.variants)) - len(once)) * len(loaded.seeds) + len(once)
    assert len(points) == rows * _times(len(v) for v in loaded.product.values())
    for one, other in itertools.combinations(points, 2):
        whole = [(point.jobs[0].config.config, overrides(point)) for point in (one, other)]
        assert whole[0] != whole[1], "two points of an example with the same configuration"
