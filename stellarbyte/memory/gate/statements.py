"""Refuses turns that state nothing lasting of the user: questions, requests, moods, remarks on the conversation."""

import re

from stellarbyte.memory.gate.frames import frames_of
from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict
from stellarbyte.memory.words import content_of, plain

_QUESTION = re.compile(
    r"[?？]\s*[\"')\]]*$|^(?:and |but |so |ok(?:ay)?,? |hey,? |well,? )?(?:what|who|whom|whose|where|when|why|how|"
    r"which|is|are|was|were|do|does|did|"
    r"can|could|would|will|should|shall|may|might|have|has|am|isn't|aren't|don't|doesn't|didn't|can't|won't|"
    r"any idea|any chance)\b(?! you believe)"
    r"|(?:吗|呢|么|嘛)[。！!?？\s]*$|^(?:请问|为什么|为何|怎么|怎样|如何|什么|哪|谁|多少|几|是不是|能不能|可不可以|会不会|有没有|要不要)"
    r"|か[。\s]*$|(?:什么|怎么|怎样|如何|为什么|哪里|哪儿|哪个|哪些|多少|是不是|能不能|可不可以|会不会|有没有|对不对|好不好)",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"^(?:please|pls|kindly|now,? |then,? |also,? |ok(?:ay)?,? |hey,? |just )*(?:please )?"
    r"(?:write|explain|translate|give|show|tell|help|make|list|summari[sz]e|create|generate|find|fix|let'?s|"
    r"describe|compare|convert|compute|calculate|"
    r"solve|suggest|recommend|draft|rewrite|rephrase|improve|correct|check|review|edit|continue|print|define|"
    r"outline|count|sort|plan|design|build|add|"
    r"remove|delete|change|update|use|try|imagine|pretend|act|answer|repeat|shorten|expand|format|draw|sing|play|"
    r"read|search|look|go|stop|start|run|"
    r"open|close|send|name|provide|prove|plot|implement|refactor|debug|optimi[sz]e|simplify|proofread|brainstorm|"
    r"invent|choose|pick|guess|turn|do|be|"
    r"keep|put|set|say|think|consider|note|replace|pretend|respond|reply|teach|remind|forget|ignore|skip|cut|split|"
    r"merge|group|rank|rate|test)\b"
    r"|\b(?:i(?:'d| would)? (?:need|want|like|love)|can|could|would) you (?:to|please)?\b|\bi(?:'d|"
    r" would) like (?:you )?to (?:know|see|hear|ask|understand|learn)\b"
    r"|^(?:so |then |well,? |and |but |ok(?:ay)?,? )?i(?: also| just| really)? (?:want|need) (?:to (?:know|see|ask|"
    r"understand|learn|find|get|write|make|create|build|compare|convert)|help|your|you|it|this|that|them|some|more|"
    r"another|something|an?|the (?:list|code|answer|text|result|other|same))\b"
    r"|^(?:请|麻烦|帮|给我|替我|告诉我|写|翻译|解释|总结|列出|介绍|推荐|比较|计算|分析|生成|画|讲|说说|谈谈|举|改写|润色|继续|描述|设计|证明|编|查|让我们|我们来|来一|我想让你|我要你|"
    r"我需要你|我想知道|我想问|我想了解)|(?:ください|下さい|教えて|してほしい|お願いします|ましょう)[。！!\s]*$",
    re.IGNORECASE,
)
_PASSING = re.compile(
    r"\b(?:today|tonight|right now|at the moment|this (?:morning|afternoon|evening|minute|second)|just now|for now|"
    r"in a (?:minute|moment|second)|later today)\b"
    r"|\bi(?:'m| am| feel| was| got)(?: feeling)?(?: just| so| very| really| a bit| a little| quite| too| still|"
    r" kind of| all)* (?:tired|hungry|thirsty|bored|fine|good|great|sorry|happy|sad|confused|"
    r"sure|curious|stuck|afraid|lost|glad|ready|back|here|done|busy|impressed|surprised|excited|wondering|trying|"
    r"looking|working on|thinking|asking|going to|about to|"
    r"not sure|not certain|getting|having trouble|having a|sleepy|cold|hot|late|kidding|joking|ok|okay|well|better|"
    r"serious|aware|grateful|worried|nervous|annoyed)\b"
    r"|今日|今朝|今夜|疲れ|お腹|眠い|今天|今晚|今早|现在(?:很|好|有点|正|在想|就|要|不)|刚才|刚刚|正在|此刻|待会|等一下|一会儿|我(?:有点|有些|很|好|太|真|好像)(?:累|饿|渴|困|无聊|烦|高兴|开心|难过|伤心|迷茫|"
    r"糊涂|好奇|忙|抱歉|着急|紧张|担心|感动|惊讶)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"^(?:\w+,? )?(?:i|we) (?:think|guess|see|understand|don't (?:understand|know|get|think|see|care|mind|remember)|"
    r"do not (?:understand|know)|hope|mean|agree|disagree|bet|suppose|wonder|"
    r"was (?:wondering|wrong|mistaken)|believe|doubt|g[eo]t it|appreciate|asked|meant|said|wish|have (?:a|another|one|"
    r"some) (?:question|request|problem)|thought|feel (?:like|that)|can(?:'t|not)? (?:see|believe|imagine|wait)|"
    r"forgot|noticed|read that|heard|(?:really )?(?:like|love|liked|enjoyed|hate) (?:that|this|it|your|how|"
    r"the (?:way|idea|answer|second|first|last))|will (?:try|do|check|see|think))\b"
    r"|^(?:that|this|it|these|those|there|here)(?:'s|'re|'ll|'ve)?\b|^you(?:'re|'ve|'ll|'d)?\b(?! can (?:reach|call|"
    r"find|contact))|^your? (?:answer|reply|response|code|example|explanation|suggestion|solution|output|text|"
    r"version|list|table|translation|summary|last|previous|first|second)\b|^(?:my bad|i (?:tried|got (?:an?|the|"
    r"this|another) (?:error|exception|warning|message|answer|result)|ran|pasted|copied|typed|clicked|uploaded|"
    r"attached|tested|followed|changed the code|meant|missed)\b)|^i(?:'d| would) say\b|^i just (?:wanted|want|need|"
    r"asked|said|thought|noticed)\b|^(?:my|the|your|our) (?:code|script|program|function|query|queries|regex|loop|"
    r"build|tests?|output|result|compiler|browser|terminal|input|prompt|question|request|message|sentence|paragraph|"
    r"draft)s? (?:is|are|was|does|do|did|has|have|should|keeps?|still|returns?|fails?|failed|throws?|prints?|says|"
    r"can|will|works?|looks?|needs?|crashes|crashed|raises?|gives?)\b|^(?:我觉得|我想|我认为|我猜|我明白|我知道|我懂|我不懂|我不明白|我不知道|"
    r"我希望|我同意|我的意思|我还?有(?:一)?(?:个|些)?(?:别的|其他|另外的)?(?:问题|疑问|想法|请求)|我想要|我只是|我(?:不太|没|还没)(?:明白|懂|看懂|听懂|理解)|我的?(?:代码|"
    r"程序|脚本|函数|问题|作业|查询|测试)(?:报错|出错|不|没|有|跑|运行|还)|我(?:试|贴|打|发|复制|粘贴|运行)(?:过|错|了)|我需要|我试|我再|这|那|你|您|它)",
    re.IGNORECASE,
)
_OF_THE_USER = re.compile(
    r"\b(?:i|i'm|i've|i'd|my|mine|me|myself|we|we're|we've|our|ours|us)\b|我|咱|本人|俺|私|僕|わたし|ぼく|あたし|うちの|"
    r"に住んで|(?:で働い|に勤め|を飼っ)て|と申します|といいます",
    re.IGNORECASE,
)
# Statements of a single word that lasts: what the user is, where from, what there is at home.
_SHORT = re.compile(
    r"^(?:I'm|I am) (?:(?:an?|from|originally from|called|named) (?!bit\b)[\w-]+|[A-Z][\w-]+|\d+)[.!]*$|"
    r"^(?:I have|I've got|I own) (?:an? )?(?!headache|cold|cough|fever|idea|point|feeling|meeting|doubt|question|"
    r"problem|request|clue|error|bug|issue|look|deadline|test|exam|minute|moment|time|news|choice|plan|way|nothing|something)"
    r"[a-z][\w-]+[.!]*$"
)
# A sentence that begins with somebody's name, of English and of Chinese.
_BY_NAME = re.compile(r"(?:And |But |So )?([A-Z][\w-]+?)(?:'s?)?(?= [a-z])|([\u4e00-\u9fff]{2,3})")
# Before the name of a place.
_PLACED = "".join(rf"(?<!\b{word} )" for word in ("in", "at", "to", "on", "from", "near", "of"))


def refuse_no_statement(candidate: Candidate, around: Surroundings) -> Verdict | None:
    """Correcting an entry is a statement in any form."""
    text = candidate.text.replace("\u2019", "'").strip()
    if len(content_of(text)) < 2 and not _SHORT.search(text):
        return Verdict("refused", "it says too little")
    if _QUESTION.search(text):
        return Verdict("refused", "it is a question")
    if _REQUEST.search(text):
        return Verdict("refused", "it is a request")
    if around.same_frame:
        return None
    if _PASSING.search(text):
        return Verdict("refused", "it will be over soon")
    if _REMARK.search(text):
        return Verdict("refused", "it is a remark on the conversation")
    return None


def refuse_of_strangers(candidate: Candidate, around: Surroundings) -> Verdict | None:
    """What is neither of the user nor of somebody known is refused even if it surprises a model.

    Small models are surprised by all that people say to assistants (docs/tried.md).
    """
    text = candidate.text.replace("\u2019", "'").strip()
    if around.same_frame or _OF_THE_USER.search(text) or _names_somebody_known(text, around):
        return None
    return Verdict("refused", "it says nothing of the user")


def _names_somebody_known(text: str, around: Surroundings) -> bool:
    """Whether a text says something of whom an entry has named, such as a child that the user has told of."""
    known = [one.entry.text for one in around.neighbours]
    subjects = [
        words[-1] for frame in frames_of(text) if (words := frame.subject.split()) and words[0] not in ("i", "the")
    ]
    if any(subject in plain(entry) for subject in subjects for entry in known):
        return True
    found = _BY_NAME.match(text)
    if found is None:
        return False
    if found[1]:
        return any(re.search(rf"(?<!^){_PLACED}\b{re.escape(found[1])}\b", entry) for entry in known)
    named = rf"我[^，。]{{0,6}}?(?:的[^，。的]{{0,5}}|叫){re.escape(found[2][:2])}"
    return any(re.search(named, entry) for entry in known)
