"""Chat templates against transformers, and templates that mean harm."""

from __future__ import annotations

import itertools
import json

import pytest

from numllm.chat import Chat
from numllm.errors import TokenizerError

TALKS = [
    [{"role": "user", "content": "债券的久期是什么？"}],
    [{"role": "system", "content": "你是会计师。"}, {"role": "user", "content": "\n本金20万元，利率5%？ "}],
    [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"}, {"role": "user", "content": "丙\n\n"}],
    [{"role": "system", "content": "S"}, {"role": "user", "content": "1"}, {"role": "assistant", "content": " 2 "},
     {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "5"}],
    [{"role": "user", "content": "查询"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "查", "arguments": {"年": 2024, "列": ["利率", None, 1.5]}}},
    ]}, {"role": "tool", "content": "3.5亿元"}, {"role": "user", "content": "所以？"}],
]
TOOLS = [{"type": "function", "function": {
    "name": "查", "description": "查数", "parameters": {"type": "object", "properties": {"年": {"type": "integer"}}},
}}]


@pytest.mark.parametrize("name", ["qwen3_30b", "qwen3_coder", "deepseek_v31", "deepseek_r1_qwen_14b_tokenizer"])
def test_rendered_texts_are_those_of_transformers(name, shared_data, tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    settings = json.loads((shared_data / "tokenizers" / "chat-templates" / f"{name}.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Chat.open(tmp_path, tokenizer)
    named = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in settings.items() if key.endswith("_token") and not key.startswith("add_")
    }
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._backend, chat_template=settings["chat_template"], **named
    )
    same = refused = 0
    options = [{}, {"enable_thinking": False}, {"thinking": True}, {"tools": TOOLS}, {"add_generation_prompt": False}]
    for talk, more in itertools.product(TALKS, options):
        more = {"add_generation_prompt": True, "enable_thinking": True, **more}
        try:
            expected = theirs.apply_chat_template(talk, tokenize=False, **more)
        except Exception:  # whatever the template raises there is one line here
            with pytest.raises(TokenizerError):
                ours.render(talk, **more)
            refused += 1
            continue
        assert ours.render(talk, **more) == expected
        same += 1
    assert same >= 20 and refused <= 5


def test_blocks_and_filters_of_templates(tokenizer):
    def rendered(template: str, **extra) -> str:
        return Chat(template, {"bos_token": "<s>"}, tokenizer).render([{"role": "user", "content": "利率"}], **extra)

    assert rendered("{% generation %}{{ messages[0].content }}{% endgeneration %}。") == "利率。"
    assert rendered("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert rendered("{{ messages | tojson }}{{ bos_token }}") == '[{"role": "user", "content": "利率"}]<s>'
    assert rendered("{{ eos_token is defined }}{{ tools is none }}{{ add_generation_prompt }}") == "FalseTrueTrue"
    assert rendered("{{ strftime_now('%Y') | length }}{{ enable_thinking }}{{ mood }}", mood="好") == "4False好"


@pytest.mark.parametrize("template", [
    "{{ ''.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}", "{{ ''|attr('__class__')|attr('__mro__') }}", "{{ messages.append(1) }}",
    "{{ ('{0.__class__.__mro__}').format(messages) }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}",
    "{{ 1 / 0 }}", "{{ range(10 ** 9) | list }}", "{{ nothing.at.all }}", "{{ 'a' + 1 }}", "{{ messages[0]() }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ strftime_now(3) }}", "{{ [].__class__ }}\n{{ x.y.z }}",
])
def test_templates_that_reach_for_python_or_go_wrong_are_refused_in_one_line(template, tokenizer):
    chat = Chat(template, {}, tokenizer, "folder")
    with pytest.raises(TokenizerError, match="^folder: the chat template cannot be filled: .") as error:
        chat.render([{"role": "user", "content": "甲"}])
    assert "\n" not in str(error.value) and len(str(error.value)) < 160


def test_a_template_that_is_not_one(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match="is not valid: "):
        Chat("{% if x %}\n{{ unclosed", {}, tokenizer)
    for settings in ({}, [], {"chat_template": 3}, {"chat_template": [{"name": "other", "template": "x"}]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(TokenizerError, match="has no chat template"):
            Chat.open(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_text("甲{{ messages[0].content }}")
    assert Chat.open(tmp_path, tokenizer).render([{"role": "user", "content": "乙"}]) == "甲乙"


def test_control_tokens_in_messages_are_refused(tokenizer):
    chat = Chat("{{ messages[0].content }}<eos>", {}, tokenizer)
    with pytest.raises(TokenizerError, match="control token '<bos>'"):
        chat.render([{"role": "user", "content": "甲<bos>乙"}])
    head, tail = chat.split("甲<bos>乙")
    assert head == [*tokenizer.encode("甲"), tokenizer.token_id("<bos>")] and tail == "乙"
    assert chat.split("甲") == ([], "甲")
    assert chat.encode("甲<eos>")[-1] == tokenizer.eos_id
