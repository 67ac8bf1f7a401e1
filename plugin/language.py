"""Which of a model's words are in the language of the query: told by script, and within Latin script by function words.

Standard library only. A small model that is asked in Chinese answers in English, and a large one asked in English may slip
into Chinese halfway; such words find nothing, or the wrong thing. Unicode's names say what script a letter is of (the
standard library has no script property). Of the languages in Latin script those listed below are told apart, where query
and answer both show several of their function words; any other is told from English alone. A query that shows too little
decides nothing. Languages that share another script (Russian and Bulgarian, Arabic and Persian) are not told apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

Runs = list[tuple[str, str]]
HAN, KANA, GREEK, LATIN = "HAN", "KANA", "GREEK", "LATIN"
_BY_NAME = {
    "CJK": HAN,
    "IDEOGRAPHIC": HAN,
    "BOPOMOFO": HAN,
    "HIRAGANA": KANA,
    "KATAKANA": KANA,
    "KATAKANA-HIRAGANA": KANA,
    "MODIFIER": "",  # apostrophe-like letters of any script
}
_UNSPACED = frozenset({HAN, KANA, "THAI", "LAO", "KHMER", "MYANMAR"})
"""Written without spaces, so that a word may run into one of another script."""
_SYLLABLES = _UNSPACED | {"HANGUL"}
"""One sign is a word, or much of one."""
_MOST_SYMBOLS = 2
"""So many Greek letters together are no Greek: β-catenin, αβ, Δψ."""

# Words that are written alike in several of these languages say nothing between those. Single letters are left out.
_FUNCTION_WORDS = {
    "en": "the of and to in is are was were be been for on with as at by from that this these those it its an or not can "
    "how what why when where who which does do did will would should could has have had you your they their he she his "
    "her we our if than then but about between into there any some such also most more other after before during through "
    "because while so no me us them my",
    "de": "der die das und ist sind ein eine einen einem einer nicht mit für auf von zu zum zur im den dem des wie was warum "
    "wo wer welche welcher welches wann kann man ich sie er es wir werden wird wurde haben hat sich auch oder bei nach aus "
    "über durch als an in am um nur noch wenn dass gibt macht mein meine ihre seine gegen",
    "fr": "le la les un une des du de et est sont en dans pour sur avec que qui quoi quel quelle quels quelles comment "
    "pourquoi où quand ce cette ces il elle ils on nous vous je ne pas plus au aux par ou mais sans son sa ses leur leurs "
    "être avoir fait peut qu comme très à",
    "es": "el la los las un una unos unas de del son en por para con que qué cómo como cuál cuáles cuándo cuando dónde donde "
    "quién se su sus al lo no si más pero muy este esta estos estas hay ser fue tiene porque entre sobre sin mi es",
    "pt": "os as um uma de do da dos das são em no na nos nas por para com que qual quais como quando onde quem se seu sua ao "
    "à não mais mas muito este esta isso ser foi tem porque entre sobre sem pelo pela você está é",
    "it": "il lo la gli le un uno una di del della dei delle dello sono in nel nella nei con per che chi cosa come quando "
    "dove perché quale quali si su al alla dal dalla da non più ma molto questo questa anche essere ha tra fra suo sua è",
    "nl": "de het een en van is zijn in op te met voor aan door niet dat die dit wat hoe waarom waar wie welke wanneer kan "
    "je hij ze we wij er bij naar uit om ook als maar of heeft worden wordt werd tot over deze hun mijn kun",
    "sv": "och att det en ett är som för på av med den till inte om hur vad varför var vilken vilka när kan jag du han hon "
    "vi från eller men så sin har hade blir man mellan efter detta dessa också mycket ska de",
    "da": "og at det en et er som for på af av med den til ikke om hvordan hvad hva hvorfor hvor hvilken hvilke hvilket når "
    "hvornår kan jeg du han hun vi fra eller men så sin har havde bliver blir man mellem etter efter dette disse også meget "
    "skal blev ble de",
    "pl": "na do to jest się nie że jak co dlaczego gdzie kiedy kto jaki jaka jakie który która które są od po za dla przez "
    "przy ale czy lub oraz jego jej ich ten ta te tego można być był była we ze",
    "cs": "je se na že jak co proč kde kdy kdo jaký jaká jaké který která které jsou od do pro při ale nebo jako není byl "
    "byla by ve ze za po tak také to",
    "tr": "ve bir bu ne nasıl neden nedir için ile mi mı mu mü da en çok daha gibi kadar olan olarak var yok ben sen biz "
    "hangi kim nerede zaman sonra önce ama veya ya değil her",
    "id": "yang dan di ke dari untuk dengan adalah ini itu apa bagaimana mengapa kenapa siapa kapan tidak akan pada oleh atau "
    "dalam sebagai juga saya kami mereka ada bisa dapat telah karena seperti saja",
    "fi": "ja on ei se että mitä miten miksi missä kuka mikä milloin ovat oli kun niin myös tai mutta joka hän sen ole voi "
    "jos tämä",
    "hu": "az és hogy nem egy van volt mi miért hogyan hol mikor ki is de ez azt meg csak milyen mely melyek kell vagy már "
    "még mint lehet",
    "vi": "là của và các có cho không được trong một những với này khi người tại sao gì như thế nào ở đó bị để",
}  # fmt: skip
_WORDS = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
"""By language; `da` is Norwegian too, and `id` Malay."""
_ENGLISH_TOO = _WORDS["en"] | frozenset(
    "al als am apa au aux ben bin bis biz but ca co com come dan den des die dove er est han hat her il im jan kim la las los "
    "man me med men mi mit ne non over pa par per plus po pour pro sa sans se sem sen si sin son sur tag tan te ten till un "
    "under van var vi war ya".split()
)
"""Function words of other languages that are English words, names or abbreviations as well: no sign against English."""
_ALL_OTHERS = frozenset().union(*(words for language, words in _WORDS.items() if language != "en"))
_NO_ENGLISH = _ALL_OTHERS - _ENGLISH_TOO
_ONLY_ENGLISH = _WORDS["en"] - _ALL_OTHERS
_SIGNS = 2
"""Function words, each counted once, that it takes to tell a language."""
_SURE_SIGNS = 5
"""As many English ones that it takes to tell English from a language that is not listed."""


@dataclass(frozen=True, slots=True)
class QueryLanguage:
    """What a query's words say of its language. `scripts` is empty where it has no letters: then any word is its own.

    `words` are the query's in lower case, and the runs of those that join scripts (使用Python). `name` is one of the list of
    function words, "other" where it is no English but nobody knows what, "" where it is any language of its scripts.
    """

    scripts: frozenset[str]
    words: frozenset[str]
    name: str

    @classmethod
    def of(cls, words: Sequence[str]) -> QueryLanguage:
        """Of a query's words. Latin ones beside another script are names (Python 怎么安装), unless they show a language."""
        runs = [(script, run) for word in words for script, run in script_runs(word)]
        name = language_of(words)
        scripts = _established(runs)
        if len(scripts) > 1 and not name:
            scripts -= {LATIN}
        if KANA in scripts:
            scripts |= {HAN}
        known = {word.casefold() for word in words} | {run.casefold() for run in _cuts(words)}
        return cls(frozenset(scripts), frozenset(known), name or _other(words) if LATIN in scripts else "")

    def own(self, words: Sequence[str]) -> list[str]:
        """Those of `words`, an answer's, that are in the query's language; [] where the answer is in another one.

        Words of another script go, unless they stand in the query. Where they weigh more than those of its scripts, the
        answer is in another language, and what would be left are strays.
        """
        if not self.scripts:
            return list(words)
        kept: list[tuple[str, Runs]] = []
        balance = 0
        for piece, runs in (pair for word in words for pair in self._pieces(word)):
            if self._is_own(piece, runs):
                kept.append((piece, runs))
                balance += _weight(piece) * any(script in self.scripts for script, _ in runs)
            elif not self._may_be_japanese(runs):
                balance -= _weight(piece)
        if balance < 0 or self._is_answered_in_another(kept):
            return []
        return [piece for piece, _ in kept]

    def _pieces(self, word: str) -> list[tuple[str, Runs]]:
        """`word`, or its runs where it is not the query's own as it stands, and a script without spaces may have joined them."""
        runs = script_runs(word)
        if not self._is_own(word, runs) and any(script in _UNSPACED for script, _ in runs):
            return [(run, [(script, run)]) for script, run in runs]
        return [(word, runs)]

    def _is_own(self, word: str, runs: Runs) -> bool:
        if word.casefold() in self.words:
            return True
        return all(not script or script in self.scripts or run.casefold() in self.words for script, run in runs)

    def _may_be_japanese(self, runs: Runs) -> bool:
        """Whether `runs` are what a Japanese answer has between the words of a query that is all Han, as Japanese ones may be."""
        return HAN in self.scripts and all(script in ("", KANA) for script, _ in runs)

    def _is_answered_in_another(self, kept: Sequence[tuple[str, Runs]]) -> bool:
        """Whether the words kept are, by all signs, of another language that shares the script."""
        if KANA in self.scripts and LATIN not in self.scripts:  # Japanese; Chinese has no kana
            return not any(script == KANA for _, runs in kept for script, _ in runs)
        words = [word for word, _ in kept]
        if self.name == "other":
            return len(_WORDS["en"] & _parts(words)) >= _SURE_SIGNS
        return bool(self.name) and language_of(words) not in ("", self.name)


def language_of(words: Iterable[str]) -> str:
    """The language in Latin script that `words` are clearly in: a name of the list of function words, or "".

    It shows two function words or more, or three where all but one are English words too, and against each other language
    more that are its own than the other's. What is English too is no sign of any other language against English.
    """
    parts = _parts(words)
    shown = {name: parts & known for name, known in _WORDS.items()}
    for name, signs in shown.items():
        clear = signs if name == "en" else signs - _ENGLISH_TOO
        enough = clear and len(clear) + len(signs) >= 2 * _SIGNS
        if enough and all(_outweighs(name, other, shown) for other in shown if other != name):
            return name
    return ""


def script_runs(word: str) -> Runs:
    """`word` cut where its script changes: (script, run). What is no letter goes with the letters before it.

    A script is "" where there is no letter, or only signs that every language uses.
    """
    if word.isascii():  # most words by far
        return [(LATIN if any(map(str.isalpha, word)) else "", word)]
    scripts = [script_of(c) for c in word]
    starts: list[tuple[int, str]] = []
    for at, script in enumerate(scripts):
        if not starts or (script and starts[-1][1] not in ("", script)):
            starts.append((at, script))
        elif script:
            starts[-1] = (starts[-1][0], script)
    ends = [at for at, _ in starts[1:]] + [len(word)]
    return [
        ("" if script == GREEK and scripts[at:end].count(GREEK) <= _MOST_SYMBOLS else script, word[at:end])
        for (at, script), end in zip(starts, ends, strict=True)
    ]


@lru_cache(maxsize=1 << 14)
def script_of(char: str) -> str:
    """The script of a letter: the first word of its Unicode name, the kana as one and Chinese signs as one. "" for others."""
    if char.isascii():
        return LATIN if char.isalpha() else ""
    letter = unicodedata.normalize("NFKC", char)[:1]
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _BY_NAME.get(name, name)


def _established(runs: Runs) -> set[str]:
    """The scripts of a query. A single letter is a sign (π, я) rather than a language, unless there is nothing else."""
    found = {script for script, _ in runs if script}
    spelled = {script for script, run in runs if script in _SYLLABLES or sum(script_of(c) == script for c in run) > 1}
    return found & spelled or found


def _cuts(words: Iterable[str]) -> Iterator[str]:
    """The runs of words that join scripts; not those of one that hides a letter of another script among its own."""
    for word in words:
        runs = script_runs(word)
        if any(script in _SYLLABLES for script, _ in runs):
            yield from (run for _, run in runs)


def _outweighs(name: str, other: str, shown: Mapping[str, Set[str]]) -> bool:
    """Whether of the function words `shown`, more set `name` apart from `other` than the other way round."""
    own = shown[name] - (_ENGLISH_TOO if other == "en" else _WORDS[other])
    theirs = shown[other] - (_ENGLISH_TOO if name == "en" else _WORDS[name])
    return len(own) > len(theirs)


def _other(words: Iterable[str]) -> str:
    """ "other" where enough words are no English, by their letters or as function words, and none is English alone; else "".

    Two function words are enough, or three words in all: El Niño and crème brûlée are English too.
    """
    parts = _parts(words)
    if parts & _ONLY_ENGLISH:
        return ""
    grammar = parts & _NO_ENGLISH
    accented = {part for part in parts if any(not c.isascii() and script_of(c) == LATIN for c in part)}
    return "other" if len(grammar | accented) >= _SIGNS + (len(grammar) < _SIGNS) else ""


def _parts(words: Iterable[str]) -> set[str]:
    """`words` in lower case, cut at apostrophes, hyphens and dots: c'est, est-ce, U.S."""
    return {part for word in words for part in re.split(r"['’.-]", word.casefold())}


def _weight(word: str) -> int:
    """How many words it counts for: two signs of a script without spaces are one, a number is none."""
    if word.isascii():
        return int(any(map(str.isalpha, word)))
    scripts = [script_of(c) for c in word]
    return (sum(script in _UNSPACED for script in scripts) + 1) // 2 or int(any(scripts))
