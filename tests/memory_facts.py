"""What the trial of the memory plants, says around it, and asks: made from lists by a seed, in English and Chinese."""

import random
from typing import NamedTuple


class Fact(NamedTuple):
    """A planted fact.

    Attributes:
        language: en or zh.
        key: what names the subject in every way of saying the fact.
        said: the turn that plants it.
        again: a turn that says it once more, in the same or in other words.
        question: what it answers.
        answer: the value, as it stands in `said`.
        update: a turn that gives it another value, and that value; None: it has no other.
    """

    language: str
    key: str
    said: str
    again: str
    question: str
    answer: str
    update: tuple[str, str] | None


class Relation(NamedTuple):
    """How a kind of fact is said and asked; {s} is the subject, {v} the value, {n} the name in the subject."""

    said: tuple[str, ...]
    asked: tuple[str, ...]
    updated: tuple[str, ...]
    values: tuple[str, ...]


EN_PEOPLE = tuple(
    f"my {kin} {name}"
    for kin, names in (
        ("sister", "Lena|Ingrid"), ("brother", "Oskar|Felix"), ("cousin", "Nadia|Pavel|Zofia"), ("aunt", "Beatrice"), ("uncle", "Gregor"),
        ("friend", "Tomasz|Yuki|Amara|Diego|Saoirse|Kwame|Leilani|Bruno"), ("colleague", "Priya|Henrik|Fatima|Julian|Olga"),
        ("neighbour", "Mrs Okafor|Mr Lindqvist"), ("niece", "Clara"), ("nephew", "Emil"), ("daughter", "Maja"), ("son", "Anton"), ("flatmate", "Rosa"),
        ("teacher", "Mr Brandt"), ("coach", "Viktor"), ("boss", "Ms Moreau"),
    )
    for name in names.split("|")
)  # fmt: skip
CITIES = (
    "Lisbon",
    "Oslo",
    "Krakow",
    "Ghent",
    "Tallinn",
    "Porto",
    "Graz",
    "Bergen",
    "Leipzig",
    "Bologna",
    "Utrecht",
    "Malmo",
    "Zagreb",
    "Seville",
    "Cork",
    "Dundee",
    "Ottawa",
    "Kyoto",
    "Lima",
    "Nairobi",
)
FIRMS = (
    "Siemens",
    "a bakery in the old town",
    "Novartis",
    "the city library",
    "a small law firm",
    "Ericsson",
    "the zoo",
    "Airbus",
    "a flower shop",
    "the tax office",
    "Spotify",
    "a bike workshop",
    "the harbour authority",
    "Bosch",
)
DATES = (
    "March 14",
    "the 2nd of June",
    "October 30",
    "August 9",
    "January 21",
    "the 17th of December",
    "April 5",
    "July 28",
    "February 11",
    "the 6th of November",
)
ENGLISH_OF_PEOPLE = (
    Relation(
        ("{S} lives in {v}.", "{S} has been living in {v} for two years.", "By the way, {s} lives in {v}."),
        ("Where does {s} live?", "Which city does {n} live in?", "In what town is {n} living?"),
        ("{S} moved to {v} last month.", "{S} lives in {v} now."), CITIES,
    ),
    Relation(
        ("{S} works at {v}.", "{S} works for {v}."),
        ("Where does {s} work?", "Who does {n} work for?"),
        ("{S} no longer works there, {n} works at {v} now.", "{S} works at {v} now."), FIRMS,
    ),
    Relation(
        ("{S}'s birthday is {v}.", "{S}'s birthday is on {v}."),
        ("When is {s}'s birthday?", "On what date does {n} have a birthday?", "What day is {n}'s birthday?"),
        ("Correction: {s}'s birthday is {v}.",), DATES,
    ),
    Relation(
        ("{S} is allergic to {v}.", "{S} has an allergy to {v}."),
        ("What is {s} allergic to?", "Which allergy does {n} have?"), (),
        tuple("walnuts|penicillin|cat hair|shellfish|birch pollen|strawberries|latex|sesame|bee stings|lactose".split("|")),
    ),
    Relation(
        ("{S} plays the {v} in an orchestra.", "{S} plays the {v}."),
        ("Which instrument does {s} play?", "What does {n} play?"), (),
        tuple("cello|bassoon|harp|trombone|viola|oboe|accordion|clarinet|mandolin|organ".split("|")),
    ),
    Relation(
        ("{S}'s favourite dish is {v}.", "{S}'s favourite food is {v}."),
        ("What is {s}'s favourite dish?", "Which food does {n} like best, what is the favourite?"),
        (), tuple("lentil curry|mushroom risotto|ramen|beetroot soup|paella|dumplings|shakshuka|pumpkin pie|"
                  "bouillabaisse|goulash".split("|")),
    ),
    Relation(
        ("{S}'s phone number is {v}.", "You can reach {s} at this phone number: {v}."),
        ("What is {s}'s phone number?", "Which number do I call to reach {n} by phone?"),
        ("{S}'s phone number is {v} now.", "{S}'s new phone number is {v}."),
        tuple(f"555-{number}" for number in range(1021, 9900, 631)),
    ),
)  # fmt: skip
ENGLISH_OF_THE_USER = (
    ("I live in {v}.", "Where do I live?", "I moved to {v}.", "Ljubljana Antwerp"),
    ("I work as a {v}.", "What do I work as?", "I work as a {v} now.", "botanist carpenter"),
    ("I work at {v}.", "Which company do I work at?", "I left, I work at {v} now.", "Philips Vestas"),
    ("My dog is called {v}.", "What is my dog called?", "Actually, my dog is called {v}.", "Biscuit Waffle"),
    ("My cat is called {v}.", "What's the name of my cat, how is it called?", "My cat is called {v} now.", "Pixel Tofu"),
    ("My favourite colour is {v}.", "What is my favourite colour?", "My favourite colour is {v} now.", "teal maroon"),
    ("My bike is a {v}.", "What kind of bike is mine?", "", "Brompton"),
    ("I drive a {v}.", "What car do I drive?", "I drive a {v} now.", "Skoda Volvo"),
    ("My landlord is {v}.", "Who is my landlord?", "My landlord is {v} now.", "Kowalski Petersen"),
    ("My dentist is Dr {v}.", "Who is my dentist?", "My dentist is Dr {v} now.", "Okonkwo Schreiber"),
    ("My shoe size is {v}.", "What is my shoe size?", "My shoe size is {v} now.", "43 44"),
    ("My desk is on floor {v}.", "On which floor is my desk?", "My desk is on floor {v} now.", "7 3"),
    ("My locker number is {v}.", "What is the number of my locker?", "My locker number is {v} now.", "218 904"),
    ("I take {v} for my blood pressure.", "What do I take for my blood pressure?", "", "ramipril"),
    ("I am training for the {v} marathon.", "Which marathon am I training for?", "", "Valencia"),
    ("My thesis is about {v}.", "What is my thesis about?", "", "lichens"),
    ("I keep the spare key under the {v}.", "Where do I keep the spare key?", "", "flowerpot"),
    ("My train leaves at {v} every morning.", "When does my train leave in the morning?", "My train leaves at {v} every morning now.", "6:42 7:12"),
    ("I have {v} chickens.", "How many chickens do I have?", "I have {v} chickens now.", "four six"),
    ("My grandmother taught me to {v}.", "What did my grandmother teach me?", "", "crochet"),
    ("I am learning {v} with a tutor.", "Which language am I learning with a tutor?", "", "Finnish"),
    ("My team uses {v} for code reviews.", "What does my team use for code reviews?", "", "Gerrit"),
    ("Our wedding anniversary is {v}.", "When is our wedding anniversary?", "", "midsummer"),
    ("My project deadline is {v}.", "When is the deadline of my project?", "My project deadline is {v} now.", "Friday Tuesday"),
    ("My yoga class is on {v}.", "On which day is my yoga class?", "My yoga class is on {v} now.", "Monday Thursday"),
    ("I read {v} before sleeping.", "What do I read before sleeping?", "", "haiku"),
    ("I collect {v} from flea markets.", "What do I collect from flea markets?", "", "thimbles"),
    ("My garden has a {v} tree.", "What tree is in my garden?", "", "quince"),
    ("My band is named {v}.", "What is my band named?", "My band is named {v} now.", "Moonbeam Driftwood"),
    ("I never eat {v}.", "What do I never eat?", "", "coriander"),
)  # fmt: skip
ZH_NAMES = {
    f"{kin}{name}": name
    for kin, names in (
        ("我的同事", "王磊 李娜 赵敏 周强"), ("我的朋友", "陈静 刘洋 杨帆 黄蓉 徐峰 孙悦"), ("我的表哥", "吴迪"), ("我的表妹", "郑爽"), ("我的室友", "冯宇"),
        ("我的邻居", "何叔叔 谢阿姨"), ("我的大学同学", "高翔 林涛"), ("我的堂弟", "马超"), ("我的姑姑", "朱琳"), ("我的舅舅", "胡军"), ("我的教练", "郭亮"),
        ("我的学生", "罗欣 梁晨 唐果"), ("我的侄女", "宋佳"), ("我的老师", "韩梅 曾老师"), ("我的客户", "董浩 袁莉 邓凯 许晴"), ("我的岳父", "傅德"), ("我的队友", "沈括 姚远"),
    )
    for name in names.split()
}  # fmt: skip
CHINESE_OF_PEOPLE = (
    Relation(
        ("{s}住在{v}。", "顺便说一下，{s}住在{v}。"), ("{s}住在哪里？", "{n}住在哪个城市？"), ("{s}搬到{v}了。", "{s}现在住在{v}。"),
        tuple("杭州|成都|西安|青岛|昆明|厦门|哈尔滨|长沙|南京|苏州|大连|桂林|拉萨|兰州|武汉".split("|")),
    ),
    Relation(
        ("{s}在{v}工作。", "{s}在{v}上班。"), ("{s}在哪里工作？", "{n}在哪家单位上班？"), ("{s}跳槽到{v}了。", "{s}现在在{v}工作。"),
        tuple("华为|中学图书馆|小米|人民医院|一家面包店|税务局|海关|大疆|出版社|博物馆|气象台|邮局".split("|")),
    ),
    Relation(
        ("{s}的生日是{v}。",), ("{s}的生日是哪天？", "{n}生日是几月几号？"), ("更正一下，{s}的生日是{v}。",),
        tuple("三月八日|五月十二日|七月一日|九月三十日|十一月六日|一月十九日|四月二十二日|八月十五日|十二月二日".split("|")),
    ),
    Relation(
        ("{s}对{v}过敏。",), ("{s}对什么过敏？", "{n}有什么过敏？"), (), tuple("花生|青霉素|海鲜|花粉|芒果|猫毛|鸡蛋|尘螨|牛奶".split("|")),
    ),
    Relation(
        ("{s}会拉{v}。", "{s}很会拉{v}。"), ("{s}会什么乐器，拉什么？", "{n}拉的是什么乐器？"), (), tuple("小提琴|二胡|大提琴|手风琴|马头琴|中提琴".split("|")),
    ),
    Relation(
        ("{s}最喜欢的菜是{v}。",), ("{s}最喜欢的菜是什么？", "{n}最喜欢什么菜？"), (), tuple("红烧肉|麻婆豆腐|清蒸鱼|饺子|锅包肉|酸菜鱼|小笼包|羊肉泡馍|过桥米线".split("|")),
    ),
    Relation(
        ("{s}的电话号码是{v}。", "{s}的手机号是{v}。"), ("{s}的电话号码是多少？", "{n}的手机号是多少？"), ("{s}的手机号改成{v}了。", "{s}的新电话号码是{v}。"),
        tuple(f"1{number}" for number in range(3500210019, 9900000000, 411234571)),
    ),
)  # fmt: skip
CHINESE_OF_THE_USER = (
    ("我的微波炉是{v}牌的。", "我的微波炉是什么牌子的？", "", "格兰仕"),
    ("我的博客写的是{v}。", "我的博客写的是什么？", "", "园艺"),
    ("我的血型是{v}。", "我的血型是什么？", "", "AB型"),
    ("我的狗叫{v}。", "我的狗叫什么名字？", "我的狗改名叫{v}了。", "旺财 豆豆"),
    ("我的猫叫{v}。", "我的猫叫什么？", "其实我的猫叫{v}。", "咪咪 煤球"),
    ("我最喜欢的颜色是{v}。", "我最喜欢的颜色是什么？", "我最喜欢的颜色改成{v}了。", "墨绿色 橙色"),
    ("我的车牌号是{v}。", "我的车牌号是多少？", "我的车牌号换成{v}了。", "浙A8821 浙B7719"),
    ("我的房东是{v}。", "我的房东是谁？", "我的房东现在是{v}。", "钱先生 沈女士"),
    ("我的牙医是{v}医生。", "我的牙医是哪位医生？", "我的牙医换成{v}医生了。", "曹 彭"),
    ("我的鞋码是{v}。", "我的鞋码是多少？", "我的鞋码是{v}了。", "42 43"),
    ("我的工位在{v}楼。", "我的工位在几楼？", "我的工位现在在{v}楼。", "9 12"),
    ("我每天早上{v}点跑步。", "我每天早上几点跑步？", "我现在每天早上{v}点跑步。", "六 五"),
    ("我的毕业论文写的是{v}。", "我的毕业论文写的是什么？", "", "敦煌壁画"),
    ("我把备用钥匙放在{v}里。", "我把备用钥匙放在哪里？", "", "鞋柜"),
    ("我养了{v}只鸡。", "我养了几只鸡？", "我现在养了{v}只鸡。", "三 五"),
    ("我奶奶教我{v}。", "我奶奶教我什么？", "", "剪纸"),
    ("我正式拜师学{v}。", "我拜师学什么？", "", "评弹"),
    ("我们团队用{v}做代码评审。", "我们团队用什么做代码评审？", "", "码云"),
    ("我们的结婚纪念日是{v}。", "我们的结婚纪念日是哪天？", "", "六月二日"),
    ("我的项目截止日期是{v}。", "我的项目截止日期是什么时候？", "我的项目截止日期改到{v}了。", "周五 周二"),
    ("我的瑜伽课在{v}。", "我的瑜伽课在星期几？", "我的瑜伽课改到{v}了。", "周一 周四"),
    ("我睡前读{v}。", "我睡前读什么？", "", "唐诗"),
    ("我从跳蚤市场收集{v}。", "我从跳蚤市场收集什么？", "", "顶针"),
    ("我家院子里有一棵{v}树。", "我家院子里有什么树？", "", "石榴"),
    ("我的乐队叫{v}。", "我的乐队叫什么？", "我的乐队改名叫{v}了。", "月光 浮木"),
    ("我从来不吃{v}。", "我从来不吃什么？", "", "香菜"),
    ("我吃{v}降血压。", "我吃什么降血压？", "", "缬沙坦"),
    ("我在为{v}马拉松训练。", "我在为哪个马拉松训练？", "", "无锡"),
    ("我的微信号是{v}。", "我的微信号是什么？", "我的微信号改成{v}了。", "haiyang77 beishan88"),
    ("我的座位号是{v}。", "我的座位号是多少？", "我的座位号换成{v}了。", "15C 22A"),
)  # fmt: skip

# Of facts of the user's own whose value another fact may have.
KEYS = (
    "shoe",
    "desk",
    "locker",
    "train",
    "chickens",
    "deadline",
    "yoga",
    "dentist",
    "鞋码",
    "工位",
    "跑步",
    "鸡",
    "截止",
    "瑜伽",
    "座位",
    "牙医",
)


def facts(count: int, seed: int) -> list[Fact]:
    """Facts of which no two answer the same question, half of them English, half Chinese."""
    random_ = random.Random(seed)
    found: list[Fact] = []
    for language, of_user, people, of_people in (
        ("en", ENGLISH_OF_THE_USER, EN_PEOPLE, ENGLISH_OF_PEOPLE),
        ("zh", CHINESE_OF_THE_USER, tuple(ZH_NAMES), CHINESE_OF_PEOPLE),
    ):
        own = []
        for said, asked, updated, values in of_user:
            value, *others = values.split()
            update = (updated.format(v=others[0]), others[0]) if others else None
            text = said.format(v=value)
            key = next((key for key in KEYS if key in text.lower()), "")
            own.append(Fact(language, key, text, _again(text, random_), asked, value, update))
        pairs = [(person, relation) for person in people for relation in of_people]
        random_.shuffle(pairs)
        for person, relation in pairs[: count // 2 - len(own)]:
            own.append(_of_person(language, person, relation, random_))
        found += own
    assert len(found) == count and len({fact.question for fact in found}) == count
    return found


def _of_person(language: str, person: str, relation: Relation, random_: random.Random) -> Fact:
    name = person.removeprefix("my ").partition(" ")[2] if language == "en" else person
    if language == "zh":
        name = ZH_NAMES[person]
    value, other = random_.sample(relation.values, 2)

    def filled(template: str, value: str) -> str:
        return template.format(s=person, S=person[:1].upper() + person[1:], n=name, v=value)

    said = random_.choice(relation.said)
    again = _again(filled(random_.choice(relation.said), value), random_)
    update = (filled(random_.choice(relation.updated), other), other) if relation.updated else None
    return Fact(
        language, name.lower(), filled(said, value), again, filled(random_.choice(relation.asked), value), value, update
    )


def _again(said: str, random_: random.Random) -> str:
    return random_.choice(
        ("{}", "As I said, {}", "{} I told you before.", "Thanks! {}")
        if said.isascii()
        else ("{}", "我说过，{}", "谢谢！{}")
    ).format(said)
