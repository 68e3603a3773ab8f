"""Sentences of Chinese that say what only one thing can be true of: patterns with a subject and a value."""

import re

_VALUE = r"(?P<value>.+)"
_MINE = r"(?P<subject>我(?:们)?(?:家)?(?:的)?[^,，是叫住在的]{0,8}?|[^,，我你他她它是叫住在的]{1,6}?)"
_SINGLE = (
    r"名字|姓名|昵称|外号|网名|生日|年龄|老板|上司|经理|领导|导师|妻子|老婆|太太|丈夫|老公|爱人|对象|男朋友|"
    r"女朋友|男友|女友|电话号码|手机号码|手机号|电话|号码|邮箱|邮箱地址|电子邮箱|"
    r"住址|地址|家乡|老家|公司|单位|工作|职业|职位|职务|工资|月薪|血型|星座|身高|体重|鞋码|尺码|医生|牙医|房东|"
    r"学校|大学|专业|系|部门|团队|母语|国籍|车|车牌号|座位|座位号|房间号|工号|学号|"
    r"航班|航班号|截止日期|纪念日|预约|会议|考试|面试|时区|预算|房租|目标|微信号|微信|QQ号|最(?:喜欢|"
    r"爱)[^是]{0,3}的[^是]{1,8}|首选[^是]{1,8}|常用[^是]{1,8}|"
    r"默认[^是]{1,8}"
)
_STATEMENTS = (
    ("name", rf"{_MINE}(?:的名字)?(?:改名|改)?(?:名|名字)?叫(?:做|作)?(?:了)?{_VALUE}"),
    ("name", rf"{_MINE}(?:给)?(?:它|他|她)?(?:改名|取名|起名)(?:为|成|叫|叫做)?(?:了)?{_VALUE}"),
    ("home", rf"{_MINE}(?:居)?住(?:在|到|进)了?{_VALUE}"),
    ("home", rf"{_MINE}(?:从.+?)?(?:搬家|搬|迁)(?:到|去|进|至)了?{_VALUE}"),
    ("home", rf"{_MINE}(?:的)?(?:家|老家|家乡)(?:在|是){_VALUE}"),
    ("employer", rf"{_MINE}(?:在|到|去)(?P<value>.+?)(?:工作|上班|任职|就职|打工)了?"),
    ("employer", rf"{_MINE}(?:跳槽|入职|加入)(?:到|去)?了?{_VALUE}"),
    ("employer", rf"{_MINE}(?:从)(?P<left>.+?)(?:离职|辞职)了?"),
    ("job", rf"{_MINE}(?:的职业|的工作|的职位)(?:是|改成|变成|换成)了?{_VALUE}"),
    ("job", rf"{_MINE}(?:是|当|做)(?:一名|一位|一个){_VALUE}"),
    ("school", rf"{_MINE}在(?P<value>.+?)(?:上学|读书|念书|就读|上大学|读大学|读研|读博|学习)"),
    ("major", rf"{_MINE}(?:的专业是|学的是|主修|改学|转学){_VALUE}"),
    ("birthday", rf"{_MINE}(?:是)?(?P<value>[\d〇一二三四五六七八九十年月日号-]+)(?:出生|生)的?"),
    ("age", rf"{_MINE}(?:今年|已经)?(?:是)?(?P<value>[\d一二三四五六七八九十百两]+)(?:岁|个月大)(?:半)?了?"),
    ("car", rf"{_MINE}开(?:的是|的车是|一辆|着){_VALUE}"),
    ("commute", rf"{_MINE}(?:坐|乘|骑|开|走)(?P<value>.+?)(?:上班|上学)"),
    ("allergy", rf"{_MINE}对{_VALUE}过敏"),
    ("married to", rf"{_MINE}(?:和|跟|与)(?P<value>.+?)(?:结婚|订婚)了?"),
    ("time", rf"(?P<subject>[^,，我你他她它]{{1,12}}?)(?:改到|改在|改为|改成|推迟到|推迟至|提前到|定在|安排在|"
             rf"开始于|截止到)了?{_VALUE}"),
)  # fmt: skip
PATTERNS = [(relation, re.compile(pattern)) for relation, pattern in _STATEMENTS]
POSSESSED = re.compile(
    rf"(?P<subject>我(?:们)?(?:家)?(?:的)?[^,，是的]{{0,6}}?|"
    rf"[^,，我你他她它是的]{{1,6}}?)(?:的)?(?:新)?(?P<relation>{_SINGLE})"
    rf"(?:是|为|在|改成|改为|变成|换成|改到|叫|变为|换为)了?{_VALUE}"
)
DENIED = re.compile(r"不再|不是|已经不|不叫|不住|不在|没有?再")
# Words for the same relation.
_SAME = {
    "name": "名字|姓名",
    "birthday": "生日",
    "age": "年龄",
    "boss": "老板|上司|领导|经理",
    "married to": "妻子|老婆|太太|丈夫|老公|爱人",
    "phone": "电话号码|手机号码|手机号|电话|号码",
    "email": "邮箱|邮箱地址|电子邮箱",
    "address": "住址|地址",
    "home": "家乡|老家",
    "employer": "公司|单位",
    "job": "职业|工作",
    "school": "学校|大学",
    "major": "专业",
    "car": "车",
    "deadline": "截止日期",
}
RELATIONS = {word: relation for relation, words in _SAME.items() for word in words.split("|")}
