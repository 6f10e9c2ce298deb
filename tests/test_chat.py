"""Chat templates against transformers, and templates that mean harm."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import pytest
from tokenizers import pre_tokenizers, trainers

from numllm.chat import Chat
from numllm.errors import TokenizerError
from numllm.questions import Question, encode_continuations, fit_letters
from numllm.tokenizer import Tokenizer, byte_level_bpe

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
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="wanted a JSON object, got list"):
        Chat.open(tmp_path, tokenizer)
    for settings in ({}, {"chat_template": 3}, {"chat_template": [{"name": "other", "template": "x"}]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(TokenizerError, match="has no chat template"):
            Chat.open(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_text("甲{{ messages[0].content }}")
    assert Chat.open(tmp_path, tokenizer).render([{"role": "user", "content": "乙"}]) == "甲乙"


def test_control_tokens_in_messages_are_refused(tokenizer):
    chat = Chat("{{ messages[0].content }}<eos>", {}, tokenizer)
    with pytest.raises(TokenizerError, match="control token '<bos>'"):
        chat.render([{"role": "user", "content": "甲<bos>乙"}])
    bos = tokenizer.token_id("<bos>")
    assert chat.encode("甲<bos>乙") == [*tokenizer.encode("甲"), bos, *tokenizer.encode("乙")]
    assert chat.encode("甲<eos>")[-1] == tokenizer.eos_id


def test_mark_up_in_messages_is_refused_and_added_letters_and_words_are_not(tmp_path):
    backend = byte_level_bpe()
    backend.train_from_iterator(["甲乙÷万元"] * 3, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<eos>", "END"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    backend.add_tokens(["<think>", "[图]", "÷", "万元", "  ", "<"])
    backend.save(str(tmp_path / "tokenizer.json"))
    chat = Chat("{{ messages[0].content }}", {}, Tokenizer(tmp_path))
    for text in ("100万元÷2 <3  [图", "<thin>"):
        assert chat.render([{"role": "user", "content": text}]) == text
    for mark in ("<eos>", "END", "<think>", "[图]"):
        with pytest.raises(TokenizerError, match=f"the control token '{re.escape(mark)}'"):
            chat.render([{"role": "user", "content": f"甲{mark}乙"}])


@pytest.mark.parametrize("settings", [
    {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}},
    {"special_tokens_map.json": {"bos_token": "<no>"}, "tokenizer_config.json": {"bos_token": "<s>"}}, {},
], ids=["map", "config-first", "file's-own"])
def test_special_tokens_of_a_template_come_from_wherever_the_tokenizer_has_them(settings, shared_data, tmp_path):
    shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", tmp_path)
    for name, value in settings.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    tokenizer = Tokenizer(tmp_path)
    chat = Chat.open(tmp_path, tokenizer)
    text = chat.render([{"role": "user", "content": "甲"}])
    assert text == "<s>甲</s>" and chat.encode(text)[0] == tokenizer.bos_id == 1


@pytest.mark.parametrize("legacy", [None, True])
@pytest.mark.parametrize("model", ["llama2/tokenizer.model", "mistral/tokenizer.model.v1"])
def test_chats_of_sentencepiece_models_are_what_transformers_reads(model, legacy, shared_data, tmp_path):
    import transformers

    shutil.copy(shared_data / "tokenizers" / model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "chat_template": "{% for m in messages %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]{% endfor %}",
        **({} if legacy is None else {"legacy": legacy}),
    }))
    ours, theirs = Tokenizer.open(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = Chat.open(tmp_path, ours)
    for text in ("<s>[INST] 年利率 [/INST]答案：", "利率</s><s>a</s> b</s>\n\n", "<s></s>▁x</s>", "甲", "乙<s>丙", ""):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert chat.encode(text) == ids, text
        ((found, offsets),) = ours.encode_offsets([text], control=True)
        covered = "".join(text[a:b] for a, b in dict.fromkeys(offsets))  # the bytes of a character have one span
        assert found == ids and covered == text and offsets == sorted(offsets)
    question = Question(id="1", question="本金100万元，年利率5%，一年利息____。", options=("5万元", "5%", "1", "2"),
                        answer="A", subject="s", domain="d")
    prompt = fit_letters(question, ours, max_length=512, chat=chat)
    assert prompt.text.startswith("<s>[INST] 本金") and prompt.text.endswith("[/INST]答案：")
    assert list(prompt.ids) == theirs(prompt.text, add_special_tokens=False)["input_ids"]
    for letter, part in zip("AB", encode_continuations(
        prompt.text, "AB", "\n\n", ours, max_length=512, control=prompt.control
    ), strict=True):
        assert list(part.ids) == theirs(f"{prompt.text}{letter}\n\n", add_special_tokens=False)["input_ids"]
        assert ours.decode([*part.ids[slice(*part.option)]]).strip() == letter
