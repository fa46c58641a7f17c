"""Models with several templates: which a conversation has."""

import json

import pytest
from gateway_helpers import END, SHELL, USER, answers_to, call_text, ids_of, run, tokenizer
from gateway_templates import NO_TOOLS, TAKES_ALL

from coderepairrl.errors import ConfigError
from coderepairrl.gateway import Renderer, RenderingConfig, SamplingConfig, make_renderer
from coderepairrl.gateway.shown import hidden
from coderepairrl.models.tokenizer import load_tokenizer


def named(folder, templates, as_files):
    made = tokenizer(TAKES_ALL).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    if as_files:
        (folder / "additional_chat_templates").mkdir()
        for name, text in templates.items():
            (
                folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
            ).write_text(text)
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {
            "chat_template": [{"name": n, "template": t} for n, t in templates.items()]
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert made
    return load_tokenizer(folder)


@pytest.mark.parametrize("as_files", [False, True])
def test_a_conversation_has_the_template_that_its_tools_ask_for(tmp_path, as_files):
    made = named(tmp_path, {"default": NO_TOOLS, "tool_use": TAKES_ALL, "rag": "{{ 'rag' }}" + NO_TOOLS}, as_files)
    renderer = make_renderer(made)
    say = lambda name, tools: make_renderer(made, RenderingConfig(template=name)).text(
        make_renderer(made, RenderingConfig(template=name)).render([USER], tools)
    )
    for tools in (None, [SHELL]):
        theirs = made.apply_chat_template([USER], tools=tools, tokenize=False, add_generation_prompt=True)
        assert renderer.text(renderer.render([USER], tools)) == theirs
        assert say("rag", tools).startswith("rag") and say("default", tools) == say("default", None)
    assert hidden(renderer) == () and renderer.stop_token_ids == Renderer(tokenizer()).stop_token_ids

    async def scenario(world):
        world.gateway.renderer = renderer
        world.session = world.gateway.open_session(world.limits, SamplingConfig())
        world.upstream.reply = lambda prompt: (ids_of(call_text("ls") + END), "stop")
        messages = [USER]
        for _ in range(3):
            message = (await world.post({"messages": messages, "tools": [SHELL]}))[1]["choices"][0]["message"]
            messages = [*messages, message, *answers_to(message)]
        assert [call.parent for call in world.session.calls] == [None, 0, 1]
        assert all(tokenizer().decode(call.prompt_ids).startswith("[TOOLS]") for call in world.session.calls)

    run(scenario)


def test_a_template_that_is_not_there_is_refused_with_the_names_of_those_that_are(tmp_path):
    made = named(tmp_path, {"chat": NO_TOOLS, "tool_use": TAKES_ALL}, False)
    for name in (None, "rag"):
        with pytest.raises(
            ConfigError,
            match=f"no chat template '{name or 'default'}': set rendering.template to one of chat, tool_use",
        ):
            make_renderer(made, RenderingConfig(template=name))
    with pytest.raises(ConfigError, match="one chat template, without a name"):
        make_renderer(tokenizer(), RenderingConfig(template="tool_use"))
    with pytest.raises(ConfigError, match="leave one of the two out"):
        make_renderer(tokenizer(), RenderingConfig(template="default", family="qwen3"))
    assert make_renderer(tokenizer(), RenderingConfig(template="default"))
