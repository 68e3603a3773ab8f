"""Sentences of Japanese that say what only one thing can be true of: patterns with a subject and a value."""

import re

_END = r"(?:です|だ|である|でした|だよ|ですよ|になりました|になった|に変わりました|に変わった|といいます|と言います)?"
_OWNER = r"(?P<subject>[^、，。はが]{1,12}?)"
_MAYBE = r"(?:(?P<subject>[^、，。はがで]{1,12}?)(?:は|が))?"
_VALUE = r"(?P<value>[^、，。]+?)"
_SINGLE = (
    r"名前|誕生日|住所|電話番号|携帯番号|携帯電話|メールアドレス|仕事|職業|会社|勤務先|年齢|血液型|出身地|出身|車|学校|大学|専攻|"
    r"上司|妻|夫|締め切り|締切|一番好きな[^はが]{1,8}|好きな[^はが]{1,8}"
)
POSSESSED = re.compile(rf"{_OWNER}の(?:新しい)?(?P<relation>{_SINGLE})(?:は|が){_VALUE}{_END}")
_STATEMENTS = (
    ("home", rf"{_MAYBE}{_VALUE}に(?:住んでいます|住んでいる|住んでる|引っ越しました|引っ越した|引越しました)"),
    ("employer", rf"{_MAYBE}{_VALUE}(?:で働いて|に勤めて|に勤務して)(?:います|いる|る)"),
    ("name", rf"(?P<subject>[^、，。はが]{{1,12}}?)は{_VALUE}(?:といいます|と言います|と申します|という名前です)"),
    ("age", r"(?P<subject>[^、，。はが]{1,12}?)(?:は|が)(?P<value>[\d一二三四五六七八九十]+)[歳才]"
            r"(?:です|だ|になりました|になった)?"),
)  # fmt: skip
PATTERNS = [(relation, re.compile(pattern)) for relation, pattern in _STATEMENTS]
FILLER = re.compile(r"^(?:実は|今は|今|現在|現在は|いや、?|違います、?|訂正します、?|やっぱり|本当は)")
MINE = frozenset(("私", "僕", "俺", "わたし", "ぼく", "あたし", "自分"))
# Words for the same relation as in the other languages.
_SAME = {
    "name": "名前",
    "birthday": "誕生日",
    "age": "年齢",
    "address": "住所",
    "phone": "電話番号|携帯番号|携帯電話",
    "email": "メールアドレス",
    "job": "仕事|職業",
    "employer": "会社|勤務先",
    "school": "学校|大学",
    "major": "専攻",
    "car": "車",
    "boss": "上司",
    "married to": "妻|夫",
    "deadline": "締め切り|締切",
}
RELATIONS = {word: relation for relation, words in _SAME.items() for word in words.split("|")}
