"""What a number must be before anything is built on it: finite, and a gap within its bound. Else the run ends."""

import math
from collections.abc import Mapping

from coderepairrl.errors import EngineError

# Largest gap, in nats, of two programs that compute the same; about ten times what healthy runs have shown
# (docs/results.md): 5.5e-5 in float32 on a CPU, 0.05 where a GPU rounds to TF32, 0.4 in bfloat16. Wrong computations
# gave 0.009 to 14.
CPU_GAP, TF32_GAP, BFLOAT16_GAP = 0.001, 0.5, 3.0
# Products of two larger weights, summed, leave float32: a merged LoRA, or the next forward pass, would be infinite.
LARGEST_WEIGHT = 1e18
REMEDY = (
    "nothing of this step was published or saved: lower engine.learning_rate (and engine.muon.learning_rate), "
    "or raise engine.warmup_steps"
)


def demand(where: str, values: Mapping[str, float], remedy: str = REMEDY) -> None:
    """Raises EngineError that names those that are NaN or infinite. Ranks that call it together have the same
    values."""
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise EngineError(f"{where}: {', '.join(broken)}: {remedy}")


def gap_bound(dtypes: set[str], cpu: bool, temperature: float) -> float:
    """By default. `dtypes`: what trainer and vLLM compute in. A temperature below 1 magnifies what logits differ by."""
    bound = CPU_GAP if cpu else TF32_GAP
    if "bfloat16" in dtypes:
        bound = BFLOAT16_GAP
    return bound / min(1.0, temperature)


def demand_gap(where: str, gap: float, bound: float) -> None:
    """In nats. Raises EngineError where trainer and vLLM disagree about a token's probability by more than `bound`."""
    demand(where, {"logprob_gap": gap})
    if gap > bound:
        raise EngineError(
            f"{where}: trainer and vLLM differ by {gap:.2g} nats in a token's logprob under the same weights, "
            f"{bound:.2g} are allowed (training.max_gap): one of them computes or holds another policy: nothing of "
            "this step was published or saved; raise training.max_gap only where rounding explains it"
        )
