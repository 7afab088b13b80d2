import json
from datetime import datetime

import pytest
from tiny_tokenizers import DATA, shared_folder

from chitu_like.core.errors import CheckpointError, RequestError
from chitu_like.server.chat_template import ChatTemplate
from chitu_like.server.tokenizer import Tokenizer

USER = {"role": "user", "content": "What is <b>2+2</b> & 'why'?"}
ANSWER = {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4 — ふ"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "many turns": [USER, ANSWER, {"role": "user", "content": "And 3+3?"}],
    "system and many turns": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "tool call": [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abcdef123",
                    "type": "function",
                    "function": {"name": "add", "arguments": {"a": 2, "b": "é"}},
                }
            ],
        },
        {"role": "tool", "content": "4", "tool_call_id": "abcdef123", "name": "add"},
    ],
    "no user": [SYSTEM],
    "two users": [USER, USER],
    "nothing": [],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <numbers> & more",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = sorted(path.name for path in (DATA / "chat_templates").glob("*.jinja"))


def hello(source: str, **variables: object) -> str:
    return ChatTemplate(source).render([USER], template_kwargs=variables)


def outcome(source: str) -> str:
    try:
        return hello(source)
    except RequestError:
        return "refused"


@pytest.mark.parametrize("family", ["qwen3", "minimind", "mistral_v1"])
def test_rendered_text_equals_the_golden_file(family: str) -> None:
    folder = shared_folder("tokenizers", family)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
    rows = (folder / "golden_chat.jsonl").read_text().splitlines()
    assert rows
    for row in map(json.loads, rows):
        tools = row["kwargs"].pop("tools", None)
        text = template.render(
            row["messages"],
            add_generation_prompt=row["add_generation_prompt"],
            tools=tools,
            template_kwargs=row["kwargs"],
        )
        assert text == row["text"]
        assert tokenizer.encode(text, add_special_tokens=False) == row["ids"]


def test_the_templates_of_known_models_are_there_to_compare() -> None:
    shared_folder("chat_templates")
    assert len(TEMPLATES) >= 10


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_known_templates_render_as_transformers_renders(
    name: str, tools: list[dict[str, object]] | None
) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (DATA / "chat_templates" / name).read_text()
    ours = ChatTemplate(source, SPECIAL_TOKENS)
    num_rendered = 0
    for messages in CONVERSATIONS.values():
        for add_generation_prompt in (True, False):
            try:
                (expected,), _ = utils.render_jinja_template(
                    [messages],
                    tools=tools,
                    chat_template=source,
                    add_generation_prompt=add_generation_prompt,
                    **SPECIAL_TOKENS,
                )
            except Exception:
                with pytest.raises(RequestError):
                    ours.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
                continue
            rendered = ours.render(
                messages, add_generation_prompt=add_generation_prompt, tools=tools
            )
            assert rendered == expected
            num_rendered += 1
    assert num_rendered >= 4


def test_the_template_says_itself_what_is_wrong() -> None:
    template = ChatTemplate("{{ raise_exception('roles must\\nalternate') }}")
    with pytest.raises(RequestError, match=r"refuses the messages: roles must$") as caught:
        template.render([USER])
    assert caught.value.param == "messages"


def test_any_failure_of_a_template_is_the_requests() -> None:
    with pytest.raises(RequestError, match="refuses"):
        hello("{{ messages[0]['content'] + 1 }}")
    with pytest.raises(RequestError, match="refuses"):
        hello("{{ messages[5]['content'].strip() }}")


def test_a_broken_template_is_the_checkpoints() -> None:
    with pytest.raises(CheckpointError, match="chat template is broken"):
        ChatTemplate("{% if %}")


def test_what_transformers_provides_is_there() -> None:
    assert hello("{{ messages | tojson }}") == json.dumps([USER], ensure_ascii=False)
    assert hello("{{ {'a': [1]} | tojson(indent=2) }}") == '{\n  "a": [\n    1\n  ]\n}'
    assert hello("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert (
        hello("a\n{% generation %}\nb{{ messages|length }}\n{% endgeneration %}\nc") == "a\nb1\nc"
    )
    loop = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
    assert hello(loop + "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "02"
    assert hello("  {% if true %}\nx\n  {% endif %}\n") == "x\n"
    assert hello("{{ '%s-%02d' | format('a', 7) }}{{ '%d' % 3 }}{{ '{:>3}'.format('b') }}") == (
        "a-073  b"
    )


def test_special_tokens_and_further_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ bos_token }}{{ enable_thinking }}{{ tools }}", SPECIAL_TOKENS)
    assert template.render([], template_kwargs={"enable_thinking": False}) == "<s>FalseNone"


def test_the_templates_own_fields_cannot_be_replaced() -> None:
    with pytest.raises(RequestError, match="'messages'"):
        hello("{{ messages }}", messages=[])


def test_text_parts_are_joined_and_other_parts_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "a\nb"
    with pytest.raises(RequestError, match="image_url"):
        template.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def test_the_words_of_a_user_are_not_taken_for_a_format() -> None:
    text = "%99999999d {:999999999} {a{b}} {{ 7*7 }}"
    source = "{% set c = messages[0].content %}{{ c.strip() }}{{ '%s' % c }}{{ '{}'.format(c) }}"
    rendered = ChatTemplate(source).render([{"role": "user", "content": text}])
    assert rendered == text * 3


def test_a_long_conversation_is_within_the_bounds() -> None:
    source = "{% for m in messages %}{{ m.role + ': ' ~ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 5000
    assert len(ChatTemplate(source).render(messages)) == 5000 * 1006


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ (messages|map(attribute='__class__')|list)[0].__name__ }}",
        "{{ '{0.__class__.__name__}'.format(messages) }}",
        "{% set f = 'a'.format %}{{ f.__self__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_no_python_object(source: str) -> None:
    assert outcome(source) in ("", "refused")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**7) %}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{{ 'a' * 10**10 }}",
        "{{ [0] * 10**9 }}",
        "{{ 10**9**9 }}",
        "{% set n = namespace(x='abcd') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='abcd') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format('a', '9999999999') }}",
        "{{ 'a'.center(9999999999) }}",
        "{{ 'a'.zfill(9999999999) }}",
        "{{ 'a' | center(9999999999) }}",
        "{{ 'a\nb' | indent(9999999999) }}",
        "{{ [1] | tojson(indent=9999999999) }}",
    ],
)
def test_a_template_stays_within_its_bounds(source: str) -> None:
    with pytest.raises(RequestError):
        hello(source)


def test_renderings_share_no_budget() -> None:
    loops = "{% for i in range(6) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(loops)
    assert template.render([]) == ""
    assert template.render([]) == ""
