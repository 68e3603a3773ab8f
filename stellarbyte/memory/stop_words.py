"""Words and characters that say nothing of what a text is about. Negations are not among them."""

# fmt: off
STOP_WORDS = frozenset((
    "a", "about", "after", "again", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because",
    "been", "before", "being", "but", "by", "can", "could", "did", "do", "does", "doing", "done", "each", "else",
    "ever", "every", "for", "from", "get", "gets", "give", "given", "got", "had", "has", "have", "having", "he",
    "her", "here", "hers", "him", "his", "how", "i", "if", "in", "into", "is", "it", "it's", "its", "just", "know",
    "let", "may", "me", "might", "mine", "more", "most", "much", "my", "need", "of", "off", "oh", "ok",
    "okay", "on", "one", "only", "or", "other", "our", "ours", "out", "over", "own", "please", "quite", "rather",
    "really", "she", "should", "so", "some", "such", "tell", "than", "thank", "thanks", "that", "that's", "the",
    "their", "theirs", "them", "then", "there", "these", "they", "thing", "things", "this", "those", "to", "too",
    "under", "until", "up", "upon", "us", "very", "was", "we", "well", "were", "what", "what's", "when", "where",
    "which", "while", "who", "who's", "whom", "whose", "why", "will", "with", "would", "yes", "yet", "you", "your",
    "yours", "i'm", "i've", "i'd", "i'll", "you're", "he's", "she's", "we're", "they're", "let's",
))
# fmt: on

STOP_CHARACTERS = frozenset(
    "的了着过是在有和与就都也很吗呢吧啊呀嘛么我你您他她它们这那哪个什谁之其而且但或把被给对从到向由于为以及等一些请问怎样何该所又再"
    "還這個們嗎為與過從對問樣誰麼"
    "のはがをにでとものへやからまでですますたしているあこそれ"
    "은는이가을를에의"
)
