"""The ZeRO-3 engine against plain PyTorch on unpacked rows: any packing, order and number of ranks; rows that ranks
share; resume; recomputed layers; KL."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, once
from programs.engine_steps import samples
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertGenerationConfig, Qwen3Config
from transformers.pytorch_utils import Conv1D

from coderepairrl.errors import ConfigError
from coderepairrl.models.loading import own_files
from coderepairrl.processes.starting import ranks_environment
from coderepairrl.training import optimizer, sequence_parallel
from coderepairrl.training.engine_config import EngineConfig


def run_engine(policy, folder, groups: dict[int, dict[str, dict]]) -> None:
    """`groups`: number of ranks -> cases."""
    command = [
        sys.executable,
        str(ROOT / "tests/programs/engine_steps.py"),
        str(policy),
        str(folder),
        json.dumps(groups),
    ]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=ranks_environment(1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def plain_loss(model, step: int) -> torch.Tensor:
    rows = samples(step)
    count = sum(sum(row.loss_mask) for row in rows)
    loss = 0.0
    for row in rows:
        ids = torch.tensor([row.token_ids])
        logprobs = (model(ids).logits[0, :-1] / 0.8).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        loss = loss - (logprobs * torch.tensor(row.advantages[1:])).sum() / count
    return loss


def plain_steps(policy, steps: int) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(losses, weights, gradients of the first step before clipping): what the engine should do, row by row with all
    logits, on one process."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    losses, gradients = [], {}
    for step in range(steps):
        loss = plain_loss(model, step)
        loss.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in model.named_parameters()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 2)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.data for name, p in model.named_parameters()}, gradients


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz iterations with the coefficients of https://kellerjordan.github.io/posts/muon, scaled as
    there."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5).float()


def plain_muon_steps(policy, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses, weights) of the layers' matrices under Muon and the rest under AdamW."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation="eager")
    matrices = {name: p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    momentum = {name: torch.zeros_like(p) for name, p in matrices.items()}
    rest = torch.optim.AdamW(
        [p for name, p in model.named_parameters() if name not in matrices], betas=(0.9, 0.95), weight_decay=0.01
    )
    losses = []
    for step in range(steps):
        loss, share = plain_loss(model, step), min(1.0, (step + 1) / 2)
        loss.backward()
        rest.param_groups[0]["lr"] = 1e-3 * share
        rest.step()
        for name, p in matrices.items():
            momentum[name].lerp_(p.grad, 1 - 0.9)
            p.data.mul_(1 - 0.01 * share * 0.01).sub_(0.01 * share * orthogonalised(p.grad.lerp(momentum[name], 0.9)))
        model.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.data for name, p in model.named_parameters()}


def largest_difference(a, b) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def expected(policy):
    return plain_steps(policy, 6)


SHARED_ROW = {"engine": {"sequence_ranks": 2}}
STEPS = {  # ranks -> cases of the same three steps
    2: {
        "two_ranks": {"order": 3},
        "two_ranks_unshared": {"tokens": 300, "share": False, "order": 4},
        "half_recomputed": {"engine": {"checkpointed_share": 0.5}},
        "a_row_on_two_ranks": SHARED_ROW,
        "unshared_on_two_ranks": SHARED_ROW | {"tokens": 301, "share": False, "order": 6},
        "recomputed_on_two_ranks": {
            "engine": {"sequence_ranks": 2, "checkpointed_share": 1.0, "offload_activations": True},
            "tokens": 10_000,
        },
    },
    1: {
        "packed": {},
        "one_row": {"tokens": 10_000, "order": 1},
        "a_row_each": {"tokens": 32, "share": False, "order": 2},
        "recomputed_and_offloaded": {"engine": {"checkpointed_share": 1.0, "offload_activations": True}},
        "optimizer_in_cpu_memory": {"engine": {"offload_optimizer": True}},
    },
    4: {
        "four_ranks": {"order": 5},
        "two_rows_on_four_ranks": SHARED_ROW | {"order": 7},
        "recomputed_on_four_ranks": {"engine": {"sequence_ranks": 2, "checkpointed_share": 0.5}},
    },
}
MUON = {"engine": {"muon": {"learning_rate": 0.01, "momentum": 0.9}, "gradient_clipping": 0.0}}
GSPO = {"algorithm": {"name": "gspo", "clip_low": 1.0, "clip_high": 100.0}}
KL = {"algorithm": {"kl_coefficient": 0.1}}
ENDS = {
    "float32": {"spoiled": True, "ends": True},
    "bfloat16": {"spoiled": True, "ends": True, "engine": {"dtype": "bfloat16"}},
    "lora": {"ends": True, "engine": {"learning_rate": 1e30, "lora": {"rank": 4}}},
    "too_far": {"ends": True, "engine": {"learning_rate": 1e30}},
}
OTHERS = {  # in this order: some read what others save, here CHECKPOINT and REFERENCE
    2: {
        "first": {"save": "CHECKPOINT"},
        "same": {"load": "CHECKPOINT"},
        "again": {"load": "CHECKPOINT"},
        "whole": {"steps": 6},
        "kl_first": KL | {"save": "REFERENCE", "steps": 2},
        "kl_resumed": KL | {"load": "REFERENCE", "steps": 2},
        "kl_whole": KL | {"steps": 4},
        "kl_lora": KL | {"engine": {"lora": {"rank": 4}}, "steps": 4},
        "kl_shared_row": KL | SHARED_ROW | {"steps": 4},
        "gspo_shared_row": GSPO | SHARED_ROW,
        "muon_first": MUON | {"save": "MUON"},
        "muon_same": MUON | {"load": "MUON"},
        "muon_whole": MUON | {"steps": 6},
        "muon_shared_row": {"engine": MUON["engine"] | SHARED_ROW["engine"]},
        "muon_from_adamw": MUON | {"load": "CHECKPOINT", "refused": ""},
        "two_ways": {"refused": "TWO_WAYS"},
        "broken": {"refused": "BROKEN"},
    }
    | ENDS,
    1: {
        "one_rank": {"load": "CHECKPOINT"},
        "gspo": GSPO,
        "muon": {"engine": MUON["engine"] | {"leaf_modules": ["Qwen3DecoderLayer"]}},
        "muon_one_rank": MUON | {"load": "MUON", "refused": ""},
    },
}


@pytest.fixture(scope="module")
def done(policy, tmp_path_factory):
    """A folder with what all cases wrote. A start of the program costs more than a case: one for all."""

    def make(folder):
        refused_models(policy, folder)
        placed = lambda options: (
            options | {verb: str(folder / options[verb]) for verb in ("save", "load", "refused") if options.get(verb)}
        )
        run_engine(
            policy,
            folder,
            {
                ranks: STEPS[ranks] | {name: placed(options) for name, options in others.items()}
                for ranks, others in OTHERS.items()
            },
        )

    return once(tmp_path_factory, "engine_cases", make)


@pytest.fixture(scope="module")
def done_by_four(policy, tmp_path_factory):
    return once(tmp_path_factory, "engine_cases_of_four", lambda folder: run_engine(policy, folder, {4: STEPS[4]}))


def refused_models(policy, folder) -> None:
    """TWO_WAYS sees what comes after a token, too, which no list of families knows. In BROKEN one weight is no
    number."""
    shape = BertGenerationConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "TWO_WAYS")
    broken = AutoModelForCausalLM.from_pretrained(policy)
    broken.get_output_embeddings().weight.data[0, 0] = float("nan")
    broken.save_pretrained(folder / "BROKEN")


# on four ranks with the long tests: two cores start them for a minute
FEW = [name for ranks in OTHERS for name in STEPS[ranks]]
NAMES = [
    pytest.param(FEW[0], marks=pytest.mark.whole),
    *FEW[1:],
    *(pytest.param(name, marks=pytest.mark.cluster) for name in STEPS[4]),
]


@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_plain_pytorch_on_unpacked_rows(policy, request, expected, name):
    done = request.getfixturevalue("done_by_four" if name in STEPS[4] else "done")
    losses, after, gradients = expected[0], *plain_steps(policy, 3)[1:]
    assert json.loads((done / f"{name}.json").read_text()) == pytest.approx(losses[:3], abs=2e-6)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert largest_difference(load_file(done / f"{name}.gradients"), gradients) < 2e-6 * largest
    start = {
        name: p.data for name, p in AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).named_parameters()
    }
    assert largest_difference(start, after) > 1e-3  # the steps do something
    # Adam divides by the root of the squared gradient: where that is near nothing its last bits decide
    assert largest_difference(load_file(done / f"{name}.safetensors"), after) < 1e-4


def test_resume_goes_on_to_the_bit_and_at_another_number_of_ranks(policy, done, expected):
    losses = {
        name: json.loads((done / f"{name}.json").read_text())
        for name in ("first", "same", "again", "one_rank", "whole")
    }
    assert losses["first"] + losses["same"] == losses["whole"] and losses["same"] == losses["again"]  # to the bit
    assert losses["whole"] == pytest.approx(expected[0], abs=5e-6) and losses["one_rank"] == pytest.approx(
        losses["same"], abs=5e-6
    )
    weights = {name: load_file(done / f"{name}.safetensors") for name in losses}
    assert largest_difference(weights["same"], weights["whole"]) == 0.0
    assert 0.0 < largest_difference(weights["one_rank"], weights["same"]) < 1e-4
    assert own_files(done / "CHECKPOINT" / "policy") == own_files(policy)  # to the byte
    exported = AutoModelForCausalLM.from_pretrained(done / "CHECKPOINT" / "policy")
    assert largest_difference({n: p.data for n, p in exported.named_parameters()}, weights["first"]) == 0.0


def test_muons_steps_equal_plain_pytorch_and_go_on_after_a_resume(policy, done):
    losses = {
        name: json.loads((done / f"muon{name}.json").read_text())
        for name in ("", "_first", "_same", "_whole", "_shared_row")
    }
    weights = {name: load_file(done / f"muon{name}.safetensors") for name in losses}
    expected, after = plain_muon_steps(policy, 6)
    assert losses["_first"] + losses["_same"] == losses["_whole"] == pytest.approx(expected, abs=1e-4)
    assert losses[""] == pytest.approx(losses["_first"], abs=1e-5) and losses["_shared_row"] == pytest.approx(
        losses["_first"], abs=1e-5
    )
    assert largest_difference(weights["_same"], weights["_whole"]) == 0.0
    start = {
        name: p.data for name, p in AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).named_parameters()
    }
    assert largest_difference(weights["_whole"], after) < 0.02 * largest_difference(start, after)
    assert "go on with training.ranks=2" in (done / "muon_one_rank.0.txt").read_text()
    assert "holds the state of adamw: engine.muon can't change" in (done / "muon_from_adamw.1.txt").read_text()


@pytest.mark.parametrize(
    "with_it, cause",
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping: with muon"),
        ({"lora": {}}, "take lora or muon"),
        ({"dtype": "bfloat16"}, "take float32"),
        ({"offload_optimizer": True}, "gathers all matrices"),
    ],
)
def test_what_muon_can_not_be_with_is_refused(with_it, cause):
    with pytest.raises(ValidationError, match=cause):
        EngineConfig(**{"learning_rate": 1e-3, "muon": {}, "gradient_clipping": 0.0} | with_it)


@pytest.mark.parametrize(
    "layer, cause", [(Conv1D(4, 4), "transposed"), (torch.nn.Conv1d(4, 4, 3), "more than two dimensions")]
)
def test_layers_that_muon_can_not_train_are_refused(layer, cause):
    layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4), layer)])
    with pytest.raises(ConfigError, match=f"module 0.1 of the layers has a .*{cause}"):
        optimizer._matrices(layers)


def test_ranks_that_share_a_row_have_the_losses_of_one(done):
    """GSPO's ratio couples all tokens of a sequence, whichever rank computed them."""
    losses, shared = (json.loads((done / f"{name}.json").read_text()) for name in ("gspo", "gspo_shared_row"))
    assert shared == pytest.approx(losses, rel=1e-5) and losses[0] != losses[1]
    gradients = [load_file(done / f"{name}.gradients") for name in ("gspo", "gspo_shared_row")]
    assert largest_difference(*gradients) < 2e-6 * max(
        gradient.abs().max().item() for gradient in gradients[0].values()
    )


@pytest.mark.parametrize("name, cause", [("two_ways", "nats from the model's own forward"), ("broken", "not a number")])
def test_a_model_that_the_engine_computes_otherwise_is_refused_on_every_rank(done, name, cause):
    said = [(done / f"{name}.{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1] and cause in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("name", ENDS)
def test_a_step_that_is_none_ends_all_ranks_and_leaves_the_weights(policy, done, name):
    """One rank's gradient is NaN, which DeepSpeed passes over in every dtype; or the weights that come out can't be
    computed with."""
    ends = [json.loads((done / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    assert ends[0] == ends[1] and ends[0][1:] == [0, "inf"]
    said = "gradient norm is inf" if "spoiled" in ENDS[name] else "it has made a weight of"
    assert said in ends[0][0] and ends[0][0].startswith("optimizer step 0: ") and "learning_rate" in ends[0][0]
    if "spoiled" in ENDS[name]:
        start = {
            n: p.data
            for n, p in AutoModelForCausalLM.from_pretrained(policy, dtype=getattr(torch, name)).named_parameters()
        }
        assert largest_difference(load_file(done / f"{name}.safetensors"), start) == 0.0


@pytest.mark.parametrize(
    "ranks, world_size, heads, key_value_heads, word",
    [(2, 3, 4, 4, "3 ranks"), (4, 4, 6, 4, "6 attention heads"), (4, 4, 8, 2, "2 key and value heads")],
)
def test_a_row_that_can_not_be_shared_is_refused(ranks, world_size, heads, key_value_heads, word):
    with pytest.raises(ConfigError, match=f"sequence_ranks={ranks} does not divide the {word}"):
        sequence_parallel.check(
            ranks, world_size, Qwen3Config(num_attention_heads=heads, num_key_value_heads=key_value_heads)
        )


def test_the_reference_stays_the_policy_that_training_began_with(policy, done):
    """A frozen second model, or LoRA's base; also after a resume, and where ranks share a row."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = [plain_loss(model, step).item() for step in range(4)]
    seen = {
        name: json.loads((done / f"kl_{name}.reference.json").read_text())
        for name in ("first", "resumed", "whole", "lora", "shared_row")
    }
    assert seen["first"] + seen["resumed"] == seen["whole"]  # to the bit
    for name in ("whole", "lora", "shared_row"):
        under_reference, divergence = zip(*seen[name], strict=True)
        assert under_reference == pytest.approx(expected, abs=2e-6)
        assert divergence[0] == 0.0 and all(value > 1e-6 for value in divergence[1:])
