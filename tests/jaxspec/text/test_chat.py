"""Templates render as transformers renders them, and fail in one line."""

import json

import pytest
import tokenizers
import transformers
from tokenizers import models

from jaxspec.text import chat

USER = {"role": "user", "content": "What is <b>\u00e9</b>?\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
TEMPLATES = {
    "turns": """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "system" %}
        {{- "[" + message.content + "]" }}
    {%- else %}
        {{- "<" + message["role"] + ">" + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}<assistant>
{% endif %}
""",
    "whitespace": """
    {% for message in messages %}
{{ message.role }}: {{ message.content }}
    {% endfor %}
    {# nothing #}
  assistant:
""",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "loops": """{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}
{%- continue -%}never{% endfor %}end""",
    "namespace": """{% set ns = namespace(found=false, n=dict(a=1)) %}
{%- for m in messages %}{% set ns.found = m.role == "user" %}{% endfor -%}
{{ ns.found }} {{ ns.n.a }}{{ ns.missing }}""",
    "marked": """{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}
{% endfor %}""",
    "optional": "{% if tools %}t{% elif documents is defined and documents %}d{% endif %}"
    "{{ unk_token }}|{{ pad_token is defined }}|{{ strftime_now('%%') }}",
}


def write(folder, template=None, jinja=None, **config):
    folder.mkdir(exist_ok=True)
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | config
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return folder


@pytest.fixture(scope="module")
def theirs():
    backend = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1}, []))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER]], ids=["one", "two"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_it_renders_as_transformers_does(tmp_path, theirs, name, messages):
    expected = theirs.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=True,
    )
    folder = write(tmp_path / "model", TEMPLATES[name])
    assert chat.render(chat.load(folder), messages) == expected != ""


def test_the_file_of_its_own_comes_first(tmp_path):
    found = chat.load(write(tmp_path / "model", "in the config", "{{ bos_token }} own"))
    assert chat.render(found, [USER]) == "<s> own"
    assert found.special_tokens["eos_token"] == "</s>"


def test_of_several_the_default_is_taken(tmp_path):
    named = [{"name": n, "template": n} for n in ("tool_use", "default")]
    assert chat.render(chat.load(write(tmp_path / "a", named)), [USER]) == "default"
    with pytest.raises(ValueError, match="called default, got tool_use"):
        chat.load(write(tmp_path / "b", named[:1]))


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{% for", "tokenizer_config.json"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "underscore"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        (3, "got int"),
        ([{"name": "x"}], "name and template"),
        (None, "has no chat template"),
    ],
)
def test_errors_are_one_line_and_name_the_file(tmp_path, template, message):
    folder = write(tmp_path / "model", template)
    with pytest.raises(ValueError, match=message) as error:
        chat.render(chat.load(folder), [USER])
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
        chat.load(tmp_path)
