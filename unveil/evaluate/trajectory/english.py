"""Rough parts of speech of English by closed classes and suffixes: a proxy for a tagger, and said to be one."""

from __future__ import annotations

import re

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from .labels import Labels, Span

WORD = re.compile(r"(?P<word>[^\W\d_]+(?:['’\-][^\W\d_]+)*)|(?P<number>\d+(?:[.,:]\d+)*)|(?P<mark>\S)")
SENTENCE = set(".!?:;\"“”‘’'*_-—(")  # a capital behind one of these may begin a sentence
CLOSED = {
    "determiner": "a an the this that these those each every either neither some any no all both half such another "
    "other what which whose",
    "pronoun": "i you he she it we they me him her us them my your his its our their mine yours hers ours theirs "
    "myself yourself himself herself itself ourselves themselves who whom one none something anything nothing "
    "everything someone anyone everyone somebody anybody everybody nobody thou thee thy ye",
    "preposition": "of in on at by with from to into onto upon about after before behind beside between beyond over "
    "under above below through during against among amongst around across along near without within toward towards "
    "like off out up down for past round till until since",
    "conjunction": "and or but nor so yet if because although though while when where whereas whether than as unless "
    "lest why how",
    "auxiliary": "be am is are was were been being have has had having do does did doing done will would shall should "
    "can could may might must ought need dare cannot don didn won wouldn couldn shouldn isn wasn aren weren hasn hadn "
    "ain shan can let",
    "adverb": "not very too then there here now never always often again once only just even still almost quite rather "
    "soon away back perhaps ever already well far much more most long together indeed",
    "number": "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand "
    "million first second third fourth fifth",
    "verb": "said say says see saw seen go goes went gone come comes came take took taken make made get got give gave "
    "given know knew known think thought look looked tell told find found leave left keep kept let put ran run sat sit "
    "stood stand felt feel heard hear began begin begun brought bring ask cry cried want seem seemed turn call cry try "
    "tried grow grew fell fall held hold lay lie laid met meet sent send set shut spoke speak spoken lost lose write "
    "wrote read ate eat drank drink slept sleep flew fly threw throw caught catch rose rise woke live love help stay",
    "adjective": "good bad great little big small old young new long high low happy sad poor rich dear own same large "
    "white black red green blue brown golden dark bright kind strong weak tall short full cold hot warm deep wide true "
    "better best worse worst many few several sure beautiful pretty sweet whole",
}
KNOWN = {word: name for name, words in reversed(CLOSED.items()) for word in words.split()}
# Words that the list of stop words has and that are no function words.
CONTENT = frozenset(
    {
        *("amount", "bill", "bottom", "call", "computer", "cry", "describe", "detail", "fill", "find", "fire", "front"),
        *("give", "interest", "made", "mill", "mine", "move", "name", "part", "put", "see", "serious", "show", "side"),
        *("sincere", "system", "take", "thick", "thin", "top"),
    }
)
SUFFIXES = (
    ("adverb", ("ly",)),
    ("noun", ("tion", "sion", "ness", "ment", "ity", "ship", "hood", "dom", "ance", "ence", "ism", "ist")),
    ("verb", ("ing", "ed", "ize", "ise", "ify")),
    ("adjective", ("ous", "ful", "less", "able", "ible", "ive", "ish", "ic", "ical", "al", "some", "est")),
)
LEAST = 3  # letters that must be left before a suffix


def part(word: str, begins: bool) -> str:
    """The part of speech of a word; `begins`: it may begin a sentence, so its capital says nothing."""
    low = word.lower().replace("’", "'")
    stem = low.split("'")[0]
    for each in (low, stem):
        if each in KNOWN and not (KNOWN[each] in ("verb", "adjective", "number") and word[0].isupper() and not begins):
            return KNOWN[each]
        if each in ENGLISH_STOP_WORDS and each not in CONTENT:
            return "particle"
    if word[0].isupper() and not begins:
        return "name"
    for name, endings in SUFFIXES:
        if any(stem.endswith(ending) and len(stem) >= len(ending) + LEAST for ending in endings):
            return name
    return "noun"


def spans(text: str) -> list[Span]:
    """Words, numbers and marks."""
    found: list[Span] = []
    begins = False  # a window may begin in the middle of a sentence
    for each in WORD.finditer(text):
        match each.lastgroup:
            case "word":
                found.append((*each.span(), part(each[0], begins)))
            case "number":
                found.append((*each.span(), "number"))
            case _:
                found.append((*each.span(), "punctuation"))
        begins = each[0] in SENTENCE or text[each.end() : each.end() + 2] == "\n\n"
    return found


FUNCTION = ("determiner", "pronoun", "preposition", "conjunction", "auxiliary", "particle")
WORDS = ("verb", "adjective", "adverb", "noun", "name")
LABELS = Labels(
    name="english",
    about="a proxy: closed classes, then suffixes, else noun; scikit-learn's stop words are function words",
    classes={
        **dict.fromkeys(FUNCTION, "function"),
        **dict.fromkeys(WORDS, "content"),
        "number": "number",
        "punctuation": "punctuation",
        "break": "layout",
    },
    spans=spans,
    whole=False,
    space="break",
    early="content",
    late="function",
)
