"""Refuses what belongs to a prompt and not to a person: marks, special tokens, system prompts, empty politeness."""

import re

from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict
from stellarbyte.memory.marks import LINE, NOTE, holds_marks
from stellarbyte.memory.words import content_of, plain

_SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
_ROLE = re.compile(r"^\W{0,4}(?:system|assistant|developer|tool|系统|助手)\W{0,4}[:：]", re.IGNORECASE | re.MULTILINE)
_SYSTEM_PROMPT = re.compile(
    r"\byou are (?:now )?(?:an?|the|chatgpt|claude|gemini|qwen|llama|deepseek|developer mode)\b(?=.{0,200}\b(?:"
    r"assistant|ai|model|chatbot|bot|agent|expert|"
    r"gpt|claude|gemini|qwen|llama|deepseek|mode)\b)"
    r"|\bas an? (?:ai|artificial|large language|language model)\b|\byour (?:task|job|role|goal) is to\b"
    r"|\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:previous|prior|above|earlier|system|"
    r"all)\b.{0,40}\b(?:instruction|prompt|rule|message)s?\b"
    r"|\b(?:always|never) (?:respond|answer|reply|use markdown)\b|\brespond (?:only )?(?:in|with|as)\b"
    r"|你是(?:一个|一名|一位)?.{0,12}(?:助手|助理|模型|专家|机器人)|作为(?:一个|一名)?(?:人工智能|AI|语言模型|大模型)|忽略.{0,10}(?:指令|指示|提示|规则)",
    re.IGNORECASE | re.DOTALL,
)
_POLITE = frozenset(
    (  # noqa: SIM905 - eighty words read better so
        "hi hello hey hiya good morning afternoon evening night bye goodbye cheers thank thanks thx ty pls please "
        "sorry welcome ok okay yes no yeah yep nope sure right great nice cool awesome perfect wonderful fine wow "
        "haha hah lol hmm um uh agree correct exactly indeed interesting got see understood alright never mind "
        "help nothing problem much lot very well done ready go ahead continue next more again stop wait later "
        "tomorrow excellent amazing love glad meet care day week end take makes sense sound good idea point "
    ).split()
)
_POLITE_CHINESE = re.compile(
    r"(?:你好|您好|嗨|哈喽|早上好|晚上好|早安|晚安|下午好|再见|拜拜|谢谢|多谢|感谢|辛苦了|不客气|不用谢|对不起|抱歉|好的|好吧|好|行|可以|是的|对|没错|"
    r"嗯|哦|啊|哈|呵|明白|明白了|知道了|了解|懂了|收到|没问题|没事|继续|下一个|太好了|太棒了|真棒|厉害|不错|有意思|原来如此|你|您|了|的|吧|呀|呢|很|真|非常)+"
)
_SIGNS = re.compile(r"[\W\d_]+")


def refuse_boilerplate(candidate: Candidate, _: Surroundings) -> Verdict | None:
    """Documents may tell of prompts and their tokens; the marks of recalled text are refused in them too."""
    text = candidate.text
    if holds_marks(text):
        return Verdict("refused", "it holds the marks of recalled text")
    if candidate.kind == "passage":
        return None
    if text.startswith(LINE) or text == NOTE:  # a turn comes here sentence by sentence, its marks apart
        return Verdict("refused", "it is a line of recalled text")
    if _SPECIAL.search(text):
        return Verdict("refused", "it holds special tokens of a prompt")
    if _ROLE.search(text) or _SYSTEM_PROMPT.search(text):
        return Verdict("refused", "it reads like a system prompt")
    if is_polite(text):
        return Verdict("refused", "it says nothing but politeness")
    return None


def is_polite(text: str) -> bool:
    """Whether a text has no other words than greetings, thanks and consent."""
    if _POLITE_CHINESE.fullmatch(_SIGNS.sub("", text)):
        return True
    words = re.findall(r"[^\W_]+", plain(text))
    return all(word in _POLITE for word in words if content_of(word))
