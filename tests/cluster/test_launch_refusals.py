"""What a launch is refused for, each in one line."""

import pytest

from coderepairrl.errors import CodeRepairError, ConfigError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dryrun"], "did you mean --dry-run?"),
        (["--status", "--cancel"], "one at a time"),
        (["site=configs/site/plan.yaml"], "did you mean"),
        (["jobs.first.program=scripts/train.py"], "no file of the project"),
        (["jobs.first.config=configs/quikstart.yaml"], "quickstart.yaml"),
        (["seedz=[1]"], "did you mean 'seeds'?"),
        (["jobs.first.overrides.x=a{runs}"], "did you mean {run}?"),
    ],
)
def test_bad_input_is_one_line(bench, words, said):
    done = bench.launch("--dry-run", *words) if not words[0].startswith("--") else bench.launch(*words)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
        and said in done.stderr
    ), done.stderr
    assert not bench.runs.exists()


def test_a_misspelt_override_is_refused_at_launch(bench):
    train = {"program": "scripts/train_grpo.py", "config": "configs/quickstart.yaml", "overrides": {"run": "{run}"}}
    with pytest.raises(
        ConfigError, match=r"learning_rat_1_seed0, job train: .*'engine.learning_rat': did you mean 'learning_rate'"
    ) as error:
        bench.plan(jobs={"train": train}, product={"engine.learning_rat": [1]}).submittables()
    assert "\n" not in str(error.value)


def test_wandb_online_without_internet_is_refused_at_launch(bench):
    train = {
        "program": "scripts/train_grpo.py",
        "config": "configs/quickstart.yaml",
        "overrides": {"run": "{run}", "wandb": {"project": "p", "mode": "online"}},
    }
    with pytest.raises(ConfigError, match="sync_wandb.sh"):
        bench.plan(jobs={"train": train}).submittables()


def test_a_site_whose_parts_are_missing_is_refused(bench):
    for tree, said in (
        ({"python": "/no/python"}, "site.python"),
        ({"images": {"serve": "/no.sif"}}, "build.sh"),
        ({"partitoin": "x"}, "'partition'"),
    ):
        bench.site(tree)
        with pytest.raises(CodeRepairError, match=said):
            bench.plan().submittables()


def test_without_slurm_the_way_out_is_named(bench):
    done = bench.launch(path="/nowhere")
    assert (
        done.returncode == 1
        and "squeue is not on this machine" in done.stderr
        and "--local" in done.stderr
        and not bench.runs.exists()
    )


def test_a_missing_model_is_refused_before_anything_starts(bench):
    bench.grid["jobs"]["first"] = {
        "program": "scripts/train_grpo.py",
        "config": "configs/quickstart.yaml",
        "overrides": {"run": "{run}", "model": "runs/no_such_policy"},
    }
    done = bench.launch("--local")
    assert done.returncode == 1 and "no model there" in done.stderr and not bench.runs.exists()
