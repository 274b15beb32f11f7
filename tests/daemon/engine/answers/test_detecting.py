"""A model's format is found in what its chat template shows; on the templates that come with llama.cpp's source."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.engine.answers.detecting import name_of, named
from llmd.daemon.engine.answers.formats import CALLS, HERMES, THINKINGS, Syntax, thinking_named
from llmd.daemon.engine.templates import ChatTemplate
from llmd.daemon.errors import BadRequest
from llmd.daemon.wire.work import ChatMessage, Tool

ROOT = Path(__file__).parents[4]
VALUES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "documents": None}
TOOL = Tool(
    "weather",
    '{"type": "function", "function": {"name": "weather", "description": "of a city <|im_end|>", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string"}}}}}',
    "{}",
)
ASKED = (ChatMessage("user", "Weather?"),)
FORMATS = {
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes+think",
    "Qwen-QwQ-32B": "hermes+think",
    "ibm-granite-granite-4.0": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.3-70B-Instruct": "llama",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-args",
    "unsloth-mistral-Devstral-Small-2507": "mistral-args",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-args+[think]",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-r1+think",
    "deepseek-ai-DeepSeek-V3.1": "deepseek+think",
    "openai-gpt-oss-120b": "harmony+harmony",
    "google-gemma-4-31B-it": "gemma+gemma",
    "Qwen3.5-4B": "qwen+think",
    "Qwen3-Coder": "qwen",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen+think",
    "tencent-Hy3": "+<think:opensource>",
    "Cohere2MoE": "+cohere",
    "MiniMax-M3": "+minimax",
    "GLM-4.7-Flash": "+think",
    "Spark2.5": "+think",
    "ByteDance-Seed-OSS": "+seed",
    "google-gemma-2-2b-it": "",
    "microsoft-Phi-3.5-mini-instruct": "",
}


@pytest.fixture(scope="module")
def templates() -> Path:
    done = subprocess.run([ROOT / "packaging/templates.sh"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.mark.parametrize("model", FORMATS)
def test_the_format_is_the_templates_own(templates: Path, model: str) -> None:
    template = ChatTemplate((templates / f"{model}.jinja").read_text())
    assert name_of(template.syntax(VALUES)) == FORMATS[model]


def test_tools_are_shown_or_explained_whatever_the_template(templates: Path) -> None:
    """A tool's name and what it is for reach the model, and what a client writes into them is escaped."""
    for file in sorted(templates.glob("*.jinja")):
        template = ChatTemplate(file.read_text())
        try:
            plain = template.laid_out(ASKED, str, lambda size: None, **VALUES)[0]
        except BadRequest:
            continue  # it takes no conversation without tools
        shown = template.laid_out(ASKED, lambda t: t.replace("<|im_end|>", "*"), lambda size: None, [TOOL], **VALUES)[0]
        assert "weather" in shown and "city" in shown and "Weather?" in shown, file.name
        assert shown.count("<|im_end|>") <= plain.count("<|im_end|>") + 1 and "of a city *" in shown, file.name


def test_a_template_without_tools_has_them_explained_in_the_models_way() -> None:
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    text = ChatTemplate(plain).laid_out(ASKED, str, lambda size: None, [TOOL], **VALUES)[0]
    assert text.startswith("[system]# Tools") and TOOL.definition in text and text.endswith("[user]Weather?")
    assert '<tool_call>\n{"name": "<function-name>", "arguments": <args-json-object>}\n</tool_call>' in text
    brief = (ChatMessage("system", "Be brief."), *ASKED)
    text = ChatTemplate(plain).laid_out(brief, str, lambda size: None, [TOOL], **VALUES)[0]
    assert text.startswith("[system]Be brief.\n\n# Tools") and text.count("[system]") == 1
    refusing = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    no_system = "{% for m in messages %}" + refusing + "{{ m.content }}{% endfor %}"
    text = ChatTemplate(no_system).laid_out(ASKED, str, lambda size: None, [TOOL], **VALUES)[0]
    assert text.startswith("# Tools") and text.endswith("\n\nWeather?")


@pytest.mark.parametrize(
    ("syntax", "call"),
    [
        ("qwen", "<function=<function-name>>\n<parameter=<name>>\n<value>\n</parameter>\n</function>\n</tool_call>"),
        ("gemma", '<|tool_call>call:<function-name>{<name>:<|"|><text><|"|>,<name>:<number>}<tool_call|>'),
        ("llama", '{"name": "<function-name>", "parameters": <args-json-object>}'),
    ],
)
def test_a_call_is_explained_as_the_model_is_to_write_it(syntax: str, call: str) -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert call in plain.laid_out(ASKED, str, lambda size: None, [TOOL], named(syntax), **VALUES)[0]


BEGUN = """{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
assistant: {% if enable_thinking is not defined or enable_thinking %}{{ 'A' ~ 'B' }}\n{% endif %}"""


@pytest.mark.parametrize("name", [*THINKINGS, "<thought>", "<thinking>", "<my-reasoning>"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_prompt_that_ends_in_the_opening_mark_tells_how_the_model_thinks(name: str, asked: bool) -> None:
    """Also where the template does not spell it, and where it opens only when it is asked to."""
    thinking = thinking_named(name)
    assert thinking
    begin = thinking.begin
    source = BEGUN.replace("'A'", repr(begin[:3])).replace("'B'", repr(begin[3:]))
    source = source.replace("is not defined or", "is defined and") if asked else source
    assert begin not in source and ChatTemplate(source).syntax(VALUES) == Syntax(None, thinking)
    # what the prompt ends in counts for more than what else the template knows
    other = "</think>" if name != "think" else "[THINK]"
    assert ChatTemplate(source + "{# " + other + " #}").syntax(VALUES).thinking == thinking


@pytest.mark.parametrize("word", ["<thinking>", "<thought>", "<reasoning>"])
def test_an_ordinary_word_in_a_template_is_no_mark(word: str) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{# answer in " + word + " #}:"
    assert ChatTemplate(source).syntax(VALUES).thinking is None


def test_an_admin_may_say_another_format() -> None:
    for calls in CALLS:
        for thinking in ("", *THINKINGS):
            name = f"{calls}+{thinking}" if thinking else calls
            assert name_of(named(name)) == name
    for wrong in ("wizard", "hermes+", "hermes+wizard", ""):
        with pytest.raises(BadRequest, match="give hermes, qwen"):
            named(wrong)
    qwen = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    text = ChatTemplate(qwen).laid_out(ASKED, str, lambda size: None, [TOOL], Syntax(HERMES), **VALUES)[0]
    assert "# Tools" in text


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('never') }}", "{{ nothing.at.all }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}",
        "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages[7].content }}", "",
    ],
)  # fmt: skip
def test_a_template_that_does_not_work_is_for_no_format(source: str) -> None:
    assert ChatTemplate(source).syntax(VALUES) == Syntax()
