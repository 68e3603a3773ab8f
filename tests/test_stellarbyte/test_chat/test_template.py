import json

import pytest

from stellarbyte.chat import bounds
from stellarbyte.chat.template import STELLARBYTE_TEMPLATE, ChatTemplate
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError

MESSAGES = [{"role": "user", "content": "Why <so>?"}, {"role": "assistant", "content": "So."}]
TOKENS = {"bos_token": "<|SBOS|>", "eos_token": "<|SEOS|>", "pad_token": "<|PAD|>"}


def render(source: str, messages: list = MESSAGES, tools: tuple = ()) -> str:
    return ChatTemplate(source, TOKENS).render(messages, tools, "x:1").text


def test_our_own_template_marks_what_the_assistant_says() -> None:
    template = ChatTemplate(STELLARBYTE_TEMPLATE, TOKENS)
    assert template.marks_turns
    rendered = template.render(MESSAGES, (), "x:1")
    assert rendered.text == "<|SBOS|>user\nWhy <so>?<|SEOS|><|SBOS|>assistant\nSo.<|SEOS|>"
    in_blocks = [rendered.origins[ord(code)].block for code in rendered.text.origins]
    assert in_blocks == [0] * (len(in_blocks) - 11) + [1] * 11


def test_what_templates_may_use() -> None:
    assert render("{{ messages[0] | tojson }}") == json.dumps(MESSAGES[0])
    assert render("{{ tools }}{{ documents }}{{ add_generation_prompt }}") == "NoneNoneFalse"
    assert render("{{ tools | tojson(indent=1) }}", tools=({"a": "é"},)) == '[\n {\n  "a": "é"\n }\n]'
    assert render("{% for m in messages %}{% break %}{% endfor %}x") == "x"
    assert not ChatTemplate("{# generation #}", {}).marks_turns
    # Llama 3's templates have a date of their own where there is no strftime_now.
    assert render("{% if strftime_now is defined %}today{% else %}26 Jul 2024{% endif %}") == "26 Jul 2024"
    assert render("{{ eos_token }}{{ add_bos_token }}") == "<|SEOS|>"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
        ("{{ messages[0].content + 3 }}", "can only concatenate str"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_does_not_suit_a_template(source: str, complaint: str) -> None:
    with pytest.raises(RecordError, match=rf"x:1 does not suit the chat template \(.*{complaint}"):
        render(source)


@pytest.mark.parametrize("source", ["\n{% for %}", "\n{{ 'x' }", "\n{% generation %}x"])
def test_a_template_that_is_no_jinja(source: str) -> None:
    with pytest.raises(UserError, match=r"the chat template is not Jinja: .* in its line 2"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 1 % 0 }}", "modulo"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{% for i in range(10**10) %}x{% endfor %}", "Range too big"),
        ("{{ {'a': 1}.b.c }}", "has no attribute 'b'"),
        ("{{ [1, 2] | random }}", None),
        ("{% include 'x' %}", "loader"),
        ("{{ 'a'.encode() }}", "unsafe"),
        ("{{ 'a'.translate({97: 'b'}) }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "begins with an underscore"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ 10 ** 400 * 1.0 }}", "too large"),
    ],
)
def test_templates_that_fail(source: str, complaint: str | None) -> None:
    error = RecordError if complaint else UserError
    with pytest.raises(error, match=complaint or "is not Jinja: No filter named 'random'"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}",
        "{{ messages[0].content * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 10**99999 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a'.zfill(10**10) }}",
        "{{ messages[0].content.center(10**10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**10) }}",
        "{{ '%10000000000s' | format('a') }}",
        "{{ range(100000) | join('a' * 10000) }}",
        "{{ ('a' * 10000).join(range(100000) | map('string')) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{{ messages | tojson(indent=10**10) }}",
        "{{ messages | tojson(separators=('a' * 9999, 'b')) }}",
        "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
        "{{ 'a\n' * 1000000 | indent(10**9) }}",
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% for i in range(99999) %}{{ f(n + 1) }}{% endfor %}{% endmacro %}{{ f(0) }}",
        "{% for i in [[[1]]] recursive %}{{ loop([[i]]) }}{% endfor %}",
    ],
)
def test_templates_that_do_too_much_are_told_their_bounds(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_STEPS", 20_000)
    monkeypatch.setattr(bounds, "MOST_ITEMS", 20_000)
    with pytest.raises(UserError) as error:
        render(source)
    assert str(error.value).startswith("the chat template ")
    assert "for x:1" in str(error.value)


@pytest.mark.parametrize(
    "source", ["{{" + "(" * 9999, "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "{{ " + "-" * 99999 + "1 }}"]
)
def test_templates_that_are_nested_too_deep(source: str) -> None:
    with pytest.raises(UserError, match="the chat template is"):
        ChatTemplate(source, {})


def test_a_template_of_many_loops() -> None:
    source = "{% for i in [1] %}" * 40 + "{{ 1 }}" + "{% endfor %}" * 40
    with pytest.raises(
        UserError, match="the chat template is nested too deep or not Jinja: too many statically nested"
    ):
        ChatTemplate(source, {})


def test_a_template_that_is_too_long() -> None:
    with pytest.raises(UserError, match="the chat template has more than 131072 characters: it is no template"):
        ChatTemplate("{{ x }}" * 20_000, {})
