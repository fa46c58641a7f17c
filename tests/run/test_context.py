"""How long an episode may get and how long a context vLLM serves are one number, or the configuration is refused."""

import pytest

from coderepairrl.config import load
from coderepairrl.errors import ConfigError
from coderepairrl.gateway import SessionLimits
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.rollout.rollout_config import RolloutConfig

NEEDED = "tasks: {name: functions}\ngroups_per_step: 1\ngroup_size: 1\n"


def read(tmp_path, *overrides):
    (tmp_path / "rollout.yaml").write_text(NEEDED)
    return load(RolloutConfig, tmp_path / "rollout.yaml", list(overrides))


@pytest.mark.parametrize(
    "overrides, tokens, served",
    [
        ([], 2048, 2048),
        (["limits.max_total_tokens=65536"], 65536, 65536),
        (["server.max_model_len=512"], 512, 512),
        (["server.max_model_len=4096", "limits.max_total_tokens=1024"], 1024, 4096),
        (["limits={max_turns: 3}", "server={threads: 1, max_model_len: 99}"], 99, 99),
    ],
)
def test_where_one_is_given_the_other_follows(tmp_path, overrides, tokens, served):
    config = read(tmp_path, *overrides)
    assert (config.limits.max_total_tokens, config.server.max_model_len) == (tokens, served)
    assert RolloutConfig.model_validate(config.model_dump(mode="json")) == config
    given = {"tasks": {"name": "functions"}, "groups_per_step": 1, "group_size": 1}
    assert RolloutConfig(**given, server=ServerConfig(max_model_len=99)).limits == SessionLimits(max_total_tokens=99)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["server.max_model_len=112", "limits.max_total_tokens=1024"],
            "max_total_tokens 1024 is more than server.max_model_len 112",
        ),
        (
            ["limits.max_total_tokens=64", "limits.max_completion_tokens=65"],
            "max_completion_tokens 65 is more than max_total_tokens 64",
        ),
        (["limits.max_completion_tokens=4096"], "max_completion_tokens 4096 is more than max_total_tokens 2048"),
        (["limits.max_total_tokens=x"], "limits.max_total_tokens: .*integer"),
        (["limits.max_total_tokens=0"], "limits.max_total_tokens: .*greater than 0"),
        *(
            (["server.extra_arguments=" + text], "is set by this program")
            for text in (
                "[--max-model-len, '4096']",
                "['--max-model-len=4096']",
                "[--max_model_len, '4096']",
                "[--max-model, '4096']",
                "[--port, '1']",
                "[--dtype, half]",
                "[--generation-config, auto]",
                "[--logprobs-mode, raw_logprobs]",
            )
        ),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words) as refused:
        read(tmp_path, *overrides)
    assert "\n" not in str(refused.value)


def test_other_arguments_of_vllm_are_left_alone(tmp_path):
    arguments = (
        "[--gpu-memory-utilization, '0.6', --enforce-eager, -tp, '2', --max-logprobs, '5', --kv-cache-memory-bytes=3G]"
    )
    assert len(read(tmp_path, f"server.extra_arguments={arguments}").server.extra_arguments) == 8
