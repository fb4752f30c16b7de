"""Small words of the five languages: articles, words that join two parts of a sentence, and words of negation.

They decide where a sentence is cut into parts, what stands between the English parts, and whether a *not* or *without*
of the source is in the English. Words are in folded form (`dalle.translate.languages`).
"""

from collections.abc import Mapping

__all__ = [
    "ADJECTIVES_FOLLOW",
    "ARTICLES",
    "ENGLISH_JOINING",
    "ENGLISH_NEGATIONS",
    "ENGLISH_POSITIONS",
    "FUNCTION_WORDS",
    "JOINING",
    "NEGATIONS",
    "NEGATION_FOLLOWS",
    "POSITIONS",
    "REQUEST_WORDS",
    "SMALL_WORDS",
    "STYLE",
]

ARTICLES: Mapping[str, frozenset[str]] = {
    "fr": frozenset("un une le la les l".split()),
    "es": frozenset("un una unos unas el la los las".split()),
    "de": frozenset("ein eine einen einem einer eines der die das den dem".split()),
}
JOINING: Mapping[str, Mapping[str, str]] = {
    "fr": {
        **{"et": "and", "ou": "or", "avec": "with", "sans": "without", "dans": "in", "sur": "on", "sous": "under"},
        **{"aux": "with", "en": "in", "pour": "for", "devant": "in front of", "derriere": "behind"},
    },
    "es": {
        **{"y": "and", "e": "and", "o": "or", "con": "with", "sin": "without", "en": "in", "sobre": "on"},
        **{"bajo": "under", "para": "for"},
    },
    "de": {
        **{"und": "and", "oder": "or", "mit": "with", "ohne": "without", "in": "in", "im": "in", "auf": "on"},
        **{"am": "at", "an": "at", "unter": "under", "neben": "next to", "vor": "in front of", "hinter": "behind"},
        **{"fur": "for", "fuer": "for", "uber": "over", "ueber": "over"},
    },
    "ko": {"그리고": "and", "와": "and", "과": "and", "하고": "and", "랑": "and", "이랑": "and"},
    "ja": {"と": "and", "そして": "and"},
}
"""Words between two parts of a sentence, with their English. Korean ones are particles of the word before them."""
ENGLISH_JOINING = frozenset(
    "and or with without in on under for at behind over by from to near beside next against".split()
    + "holding wearing eating riding".split()
)
FUNCTION_WORDS = frozenset("a an the of in on at with and or for to from by".split())
"""English words that a translation may have whatever the source says."""
NEGATIONS: Mapping[str, Mapping[str, str]] = {
    "fr": {"sans": "without", "pas": "not", "aucun": "no", "aucune": "no", "ni": "nor", "jamais": "never"},
    "es": {"sin": "without", "no": "no", "ningun": "no", "ninguna": "no", "ni": "nor", "nunca": "never"},
    "de": {
        **dict.fromkeys(("kein", "keine", "keinen", "keinem", "keiner", "keines"), "no"),
        **{"ohne": "without", "nicht": "not", "nie": "never"},
    },
    "ko": {**dict.fromkeys(("없는", "없이"), "without"), "말고": "not"},
    "ja": {
        **dict.fromkeys(("なし", "なしの", "のない", "がない", "のいない", "がいない", "無し", "無い"), "without"),
        **dict.fromkeys(("ではなく", "じゃなく", "でなく"), "not"),
    },
}
"""Words of negation with their English."""
NEGATION_FOLLOWS = frozenset({"ko", "ja"})
"""Languages in which a word of negation follows what it negates."""
ENGLISH_NEGATIONS = frozenset("without no not non nor never nobody nothing".split())
POSITIONS: Mapping[str, frozenset[str]] = {
    "ko": frozenset("위 아래 밑 안 속 옆 앞 뒤".split()),
    "ja": frozenset("上 下 中 隣 横 前 後ろ".split()),
}
"""Words for a place beside, on or in something, which are nouns in Korean and Japanese."""
ENGLISH_POSITIONS = frozenset("on under in inside next front behind above below over beside".split())
ADJECTIVES_FOLLOW = frozenset({"fr", "es"})
"""Languages whose adjectives mostly follow their noun."""
SMALL_WORDS: Mapping[str, Mapping[str, str]] = {
    "fr": {**dict.fromkeys(ARTICLES["fr"], ""), "de": "of", "d": "of", "du": "of", "des": ""},
    "es": {**dict.fromkeys(ARTICLES["es"], ""), "de": "of", "del": "of"},
    "de": {**dict.fromkeys(ARTICLES["de"], ""), "des": "of", "von": "of", "vom": "of"},
    "ko": dict.fromkeys("은 는 이 가 을 를 의 에 에서 로 으로".split(), ""),
    "ja": dict.fromkeys("の を が は に で な".split(), ""),
}
"""Other small words with their English in a look-up; empty for those that are left out."""
STYLE: Mapping[str, frozenset[str]] = {
    "fr": frozenset({"style"}),
    "es": frozenset({"estilo"}),
    "de": frozenset({"stil"}),
    "ko": frozenset({"스타일", "풍"}),
    "ja": frozenset({"スタイル", "風"}),
}
"""Words for a style, beside its name."""
REQUEST_WORDS = frozenset(
    "a i me want draw make show please style emoji picture image photo icon drawing sticker flag illustration".split()
)
"""English words of what is asked for, and not of what is on the picture."""
