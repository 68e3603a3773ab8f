"""Sentences of English that say what only one thing can be true of: patterns with a subject and a value."""

import re

_SUBJECT = (
    r"(?P<subject>i|we|(?:my|our|his|her|their) [^,]{1,40}?|"
    r"(?!(?:it|that|this|there|what|he|she|they|you)\b)[a-z][\w'-]*(?: [\w'-]+){0,2}?)"
)
_VALUE = r"(?P<value>.+)"
DENIED = r"(?:no longer|not|never|do not|does not|did not|is not|are not|am not)"

# In respects of which a person has one, with whoever is asked for: "my boss is", "Anna's address is".
_SINGLE = (
    r"name|nickname|username|user name|birthday|date of birth|birth date|age|boss|manager|supervisor|advisor|wife|"
    r"husband|spouse|partner|girlfriend|boyfriend|fiancee?|"
    r"(?:phone|mobile|cell|telephone|office|room|seat|locker|flight|customer|employee|member|passport|account|"
    r"extension)(?: phone)? ?(?:number)?|number|"
    r"e-?mail(?: address)?|address|zip code|postcode|hometown|home town|home|employer|company|job|profession|"
    r"occupation|title|position|role|salary|blood type|star sign|"
    r"height|weight|shoe size|size|doctor|dentist|gp|therapist|lawyer|landlord|landlady|school|university|college|"
    r"major|subject|degree|department|team|native language|mother tongue|nationality|"
    r"car|deadline|due date|anniversary|wedding date|appointment|meeting|exam|interview|flight|departure|arrival|"
    r"time zone|timezone|budget|rent|goal|diet|"
    r"favou?rite [\w ]{2,30}?|preferred [\w ]{2,30}?|default [\w ]{2,30}?|usual [\w ]{2,30}?|main [\w ]{2,30}?|"
    r"current [\w ]{2,30}?"
)
_STATEMENTS = (
    ("name", rf"{_SUBJECT} (?:is|are|am|was|got|gets|goes)(?: (?:re)?named| called| by(?: the name)?) {_VALUE}"),
    ("name", rf"{_SUBJECT}(?:'s|s')? name (?:is|was)(?: changed to)? {_VALUE}"),
    ("name", rf"(?:i|we) (?:re)?named {_SUBJECT} {_VALUE}"),
    ("home", rf"{_SUBJECT} (?:lives?|have lived|has lived|have been living|has been living|living|am living|"
             rf"is living|are living|resides?|is based|am based|are based|dwells?|stays?) (?:in|at|near|on) {_VALUE}"),
    ("home", rf"{_SUBJECT} (?:have |has |had )?(?:moved|relocated) (?:house |home |away |back |"
             rf"over )?(?:from .+? )?(?:to|into) {_VALUE}"),
    ("home", rf"{_SUBJECT} (?:hometown|home|place) is (?:in )?{_VALUE}"),
    ("employer", rf"{_SUBJECT} (?:works?|have worked|has worked|have been working|has been working|working|"
                 rf"am working|is working|am employed|is employed) (?:at|for|with) {_VALUE}"),
    ("employer", rf"{_SUBJECT} (?:have |has )?(?:joined|switched jobs to|changed jobs to|started (?:working )?at|"
                 rf"got a job at|moved jobs to) {_VALUE}"),
    ("employer", rf"{_SUBJECT} (?:left|quit|was fired from|was laid off from) (?P<left>.+)"),
    ("job", rf"{_SUBJECT} (?:works?|working|am working|is working|am employed|is employed) as (?:an? |the )?{_VALUE}"),
    ("job", rf"{_SUBJECT} (?:became|got promoted to|was promoted to|am promoted to) (?:an? |the )?{_VALUE}"),
    ("school", rf"{_SUBJECT} (?:go|goes|study|studies|studying|am studying|is studying|am enrolled|"
               rf"is enrolled) (?:at|to) {_VALUE}"),
    ("major", rf"{_SUBJECT} (?:study|studies|am studying|is studying|major in|majors in|changed (?:my|his|"
              rf"her) major to) (?!at\b|to\b){_VALUE}"),
    ("birthday", rf"{_SUBJECT} (?:was|were) born (?:on|in) (?=.*(?:\d|january|february|march|april|may|june|july|"
                 rf"august|september|october|november|december)){_VALUE}"),
    ("birthday", rf"{_SUBJECT} birthday (?:is|falls)(?: on| in)? {_VALUE}"),
    ("age", rf"{_SUBJECT} (?:is|am|are|turned|just turned|became) (?P<value>\d+|one|two|three|four|five|six|seven|"
            rf"eight|nine|ten)(?: years?(?: old)?| months?(?: old)?)?"),
    ("car", rf"{_SUBJECT} (?:drives?|am driving|is driving) (?!(?:to|from|home|past|every|on|in)\b){_VALUE}"),
    ("commute", rf"{_SUBJECT} (?:commutes?|gets? to work|goes? to work|go to work) by {_VALUE}"),
    ("married to", rf"{_SUBJECT} (?:is|am|are|got) (?:married|engaged) to {_VALUE}"),
    ("diet", rf"{_SUBJECT} (?:is|am|became|turned) (?:an? )?(?P<value>vegan|vegetarian|pescatarian|omnivore|"
             rf"meat eater)"),
    ("time", rf"{_SUBJECT} (?:takes place|starts|begins|is scheduled|is due|opens|closes|leaves|departs|arrives|"
             rf"ends|happens|is planned|was moved|has been moved|is moved|was postponed|has been postponed|"
             rf"was rescheduled|has been rescheduled) (?:on|at|for|in|to|by|until) {_VALUE}"),
    ("phone", rf"(?:you can )?(?:reach|call) {_SUBJECT} (?:at|on|under)(?: this)?(?: phone)?(?: number)?:? {_VALUE}"),
    ("allergy", rf"{_SUBJECT} (?:is|am|are) (?:severely |very )?allergic to {_VALUE}"),
    ("allergy", rf"{_SUBJECT} (?:has|have) an? (?:severe )?allergy to {_VALUE}"),
    ("preference", rf"{_SUBJECT} prefers? (?P<value>.+?) (?:to|over|rather than) .+"),
)  # fmt: skip
PATTERNS = [(relation, re.compile(pattern)) for relation, pattern in _STATEMENTS]
POSSESSED = re.compile(
    rf"(?P<subject>my|our|his|her|their|[a-z][\w'-]*(?: [\w'.-]+){{0,3}}?'s|[a-z][\w-]*s'|the) (?:new |own |"
    rf"latest )?(?P<relation>{_SINGLE}) "
    rf"(?:is|are|was|were|has changed to|changed to|has been moved to|was moved to|is now|will be)(?: on| at| in|"
    rf" to| called| now)? {_VALUE}"
)
CHANGED = re.compile(
    rf"(?:i|we) (?:have |has )?(?:changed|switched|updated) (?P<subject>my|"
    rf"our) (?P<relation>{_SINGLE}) (?:from .+? )?to {_VALUE}"
)
# Words for the same relation.
_SAME = {
    "name": "name",
    "home": "hometown|home town",
    "employer": "company",
    "job": "profession|occupation",
    "birthday": "date of birth|birth date",
    "school": "university|college",
    "major": "subject",
    "married to": "wife|husband|spouse",
    "username": "user name",
    "deadline": "due date",
    "email": "email address|e-mail|e-mail address",
    "phone": "phone number|number|mobile|cell|mobile number|cell phone|telephone|telephone number|cell phone number",
    "time zone": "timezone",
    "favourit food": "favourit dish|favourit meal",
    "favourit film": "favourit movi",
    "boss": "manager|supervisor",
}
RELATIONS = {word: relation for relation, words in _SAME.items() for word in words.split("|")}
