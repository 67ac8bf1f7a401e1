"""Decide which words of a model's output are in the language of the query.

Standard library only. A small model that gets a Chinese query may answer in English, and a large model may slip into
Chinese halfway. Such words find nothing, or the wrong documents.

The first sign is the script. It comes from Unicode's names, because the standard library has no script property. Within
Latin script, function words tell the languages listed below apart: query and output must both show several of them. A
language that is not listed is only told from English. Languages that share another script (Russian and Bulgarian, Arabic
and Persian) are not told apart. A query with too few signs decides nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

ScriptRuns = list[tuple[str, str]]
"""Pairs of a script and the part of a word that is written in it."""
HAN, KANA, GREEK, LATIN = "HAN", "KANA", "GREEK", "LATIN"
_SCRIPT_BY_NAME = {
    "CJK": HAN,
    "IDEOGRAPHIC": HAN,
    "BOPOMOFO": HAN,
    "HIRAGANA": KANA,
    "KATAKANA": KANA,
    "KATAKANA-HIRAGANA": KANA,
    "MODIFIER": "",  # apostrophe-like letters of any script
}
_UNSPACED_SCRIPTS = frozenset({HAN, KANA, "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts without spaces, so that a word may run into a word of another script."""
_SCRIPTS_OF_WHOLE_WORDS = _UNSPACED_SCRIPTS | {"HANGUL"}
"""Scripts in which one sign is a word, or a large part of one."""
_MAX_GREEK_SYMBOLS = 2
"""Up to so many Greek letters together are symbols, not Greek: β-catenin, αβ, Δψ."""

# Several of these languages share words. A shared word does not tell them apart. Single letters are left out.
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
_FUNCTION_WORDS_BY_LANGUAGE = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
"""The code `da` also covers Norwegian, and `id` also covers Malay."""
_SHARED_WITH_ENGLISH = _FUNCTION_WORDS_BY_LANGUAGE["en"] | frozenset(
    "al als am apa au aux ben bin bis biz but ca co com come dan den des die dove er est han hat her il im jan kim la las los "
    "man me med men mi mit ne non over pa par per plus po pour pro sa sans se sem sen si sin son sur tag tan te ten till un "
    "under van var vi war ya".split()
)
"""Function words of other languages that are also English words, names or abbreviations. They are no sign against
English."""
_NON_ENGLISH_WORDS = frozenset().union(
    *(words for language, words in _FUNCTION_WORDS_BY_LANGUAGE.items() if language != "en")
)
_NEVER_ENGLISH = _NON_ENGLISH_WORDS - _SHARED_WITH_ENGLISH
_ONLY_ENGLISH = _FUNCTION_WORDS_BY_LANGUAGE["en"] - _NON_ENGLISH_WORDS
_MIN_SIGNS = 2
"""The number of different function words that a language must show."""
_MIN_ENGLISH_SIGNS = 5
"""The number of English function words that tell English from a language that is not listed."""


@dataclass(frozen=True, slots=True)
class QueryLanguage:
    """What the words of a query say about its language.

    `scripts` is empty when the query has no letters; then every word counts as its own. `words` are the words of the
    query in lower case. For a word that joins scripts (使用Python), they also hold its parts. `language` is a code of the
    list of function words, "other" for an unknown language that is not English, or "" for any language of the scripts.
    """

    scripts: frozenset[str]
    words: frozenset[str]
    language: str

    @classmethod
    def detect(cls, words: Sequence[str]) -> QueryLanguage:
        """Detect the language of a query from its words.

        Latin words beside another script count as names (Python 怎么安装), unless they show a language.
        """
        runs = [run for word in words for run in split_by_script(word)]
        language = detect_language(words)
        scripts = _find_query_scripts(runs)
        if len(scripts) > 1 and not language:
            scripts -= {LATIN}
        if KANA in scripts:
            scripts |= {HAN}
        query_words = {word.casefold() for word in words}
        query_words |= {part.casefold() for part in _iterate_mixed_script_parts(words)}
        if LATIN not in scripts:
            language = ""
        elif not language:
            language = _detect_unlisted_language(words)
        return cls(frozenset(scripts), frozenset(query_words), language)

    def select_own_words(self, words: Sequence[str]) -> list[str]:
        """Return those `words` of a model's output that are in the query's language. [] when the output is in another.

        Words of another script are dropped, unless the query contains them. When more words are dropped than stay, the
        output is in another language, and the words that would stay are strays.
        """
        if not self.scripts:
            return list(words)
        own_words: list[tuple[str, ScriptRuns]] = []
        balance = 0
        for piece, runs in (pair for word in words for pair in self._split_foreign_word(word)):
            if self._is_own_word(piece, runs):
                own_words.append((piece, runs))
                balance += _count_as_words(piece) * any(script in self.scripts for script, _ in runs)
            elif not self._may_be_japanese(runs):
                balance -= _count_as_words(piece)
        if balance < 0 or self._is_in_another_language(own_words):
            return []
        return [piece for piece, _ in own_words]

    def _split_foreign_word(self, word: str) -> list[tuple[str, ScriptRuns]]:
        """Return `word`, or its parts by script when a script without spaces may have joined foreign words to it."""
        runs = split_by_script(word)
        if not self._is_own_word(word, runs) and any(script in _UNSPACED_SCRIPTS for script, _ in runs):
            return [(part, [(script, part)]) for script, part in runs]
        return [(word, runs)]

    def _is_own_word(self, word: str, runs: ScriptRuns) -> bool:
        if word.casefold() in self.words:
            return True
        return all(not script or script in self.scripts or part.casefold() in self.words for script, part in runs)

    def _may_be_japanese(self, runs: ScriptRuns) -> bool:
        """Whether `runs` may be kana between the Han words of a Japanese answer. A query of only Han may be Japanese."""
        return HAN in self.scripts and all(script in ("", KANA) for script, _ in runs)

    def _is_in_another_language(self, own_words: Sequence[tuple[str, ScriptRuns]]) -> bool:
        """Whether the words are clearly of another language that shares the script."""
        if KANA in self.scripts and LATIN not in self.scripts:  # the query is Japanese, and Chinese has no kana
            return not any(script == KANA for _, runs in own_words for script, _ in runs)
        words = [word for word, _ in own_words]
        if self.language == "other":
            return len(_FUNCTION_WORDS_BY_LANGUAGE["en"] & _split_into_parts(words)) >= _MIN_ENGLISH_SIGNS
        return bool(self.language) and detect_language(words) not in ("", self.language)


def detect_language(words: Iterable[str]) -> str:
    """Return the code of the listed language in Latin script that `words` are clearly in, or "".

    The words must show two function words of it, or three when all but one are also English words. Compared with every
    other language, they must show more words that only this language has. A word that is also English is no sign of
    another language against English.
    """
    parts = _split_into_parts(words)
    signs_by_language = {language: parts & known for language, known in _FUNCTION_WORDS_BY_LANGUAGE.items()}
    for language, signs in signs_by_language.items():
        clear_signs = signs if language == "en" else signs - _SHARED_WITH_ENGLISH
        has_enough = clear_signs and len(clear_signs) + len(signs) >= 2 * _MIN_SIGNS
        if has_enough and all(
            _outweighs_language(language, rival, signs_by_language) for rival in signs_by_language if rival != language
        ):
            return language
    return ""


def split_by_script(word: str) -> ScriptRuns:
    """Cut `word` where its script changes. A sign that is not a letter stays with the letters before it.

    The script is "" for a part without letters, or with only signs that every language uses.
    """
    if word.isascii():  # by far the most words
        return [(LATIN if any(map(str.isalpha, word)) else "", word)]
    scripts = [find_script(char) for char in word]
    starts: list[tuple[int, str]] = []
    for position, script in enumerate(scripts):
        if not starts or (script and starts[-1][1] not in ("", script)):
            starts.append((position, script))
        elif script:
            starts[-1] = (starts[-1][0], script)
    ends = [start for start, _ in starts[1:]] + [len(word)]
    return [
        (
            "" if script == GREEK and scripts[start:end].count(GREEK) <= _MAX_GREEK_SYMBOLS else script,
            word[start:end],
        )
        for (start, script), end in zip(starts, ends, strict=True)
    ]


@lru_cache(maxsize=1 << 14)
def find_script(char: str) -> str:
    """Return the script of a letter, which is the first word of its Unicode name. Return "" for any other sign.

    Hiragana and katakana count as one script, and so do all Chinese signs.
    """
    if char.isascii():
        return LATIN if char.isalpha() else ""
    letter = unicodedata.normalize("NFKC", char)[:1]
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _SCRIPT_BY_NAME.get(name, name)


def _find_query_scripts(runs: ScriptRuns) -> set[str]:
    """Return the scripts of a query. A script with only single letters (π, я) counts only when there is no other."""
    all_scripts = {script for script, _ in runs if script}
    spelled_scripts = {
        script
        for script, part in runs
        if script in _SCRIPTS_OF_WHOLE_WORDS or sum(find_script(char) == script for char in part) > 1
    }
    return all_scripts & spelled_scripts or all_scripts


def _iterate_mixed_script_parts(words: Iterable[str]) -> Iterator[str]:
    """Yield the parts of words that join scripts. A word with one disguised letter of another script has no such parts."""
    for word in words:
        runs = split_by_script(word)
        if any(script in _SCRIPTS_OF_WHOLE_WORDS for script, _ in runs):
            yield from (part for _, part in runs)


def _outweighs_language(language: str, rival: str, signs_by_language: Mapping[str, Set[str]]) -> bool:
    """Whether more of the signs belong only to `language` than only to `rival`."""
    rival_words = _SHARED_WITH_ENGLISH if rival == "en" else _FUNCTION_WORDS_BY_LANGUAGE[rival]
    language_words = _SHARED_WITH_ENGLISH if language == "en" else _FUNCTION_WORDS_BY_LANGUAGE[language]
    return len(signs_by_language[language] - rival_words) > len(signs_by_language[rival] - language_words)


def _detect_unlisted_language(words: Iterable[str]) -> str:
    """Return "other" when enough words are clearly not English, by their letters or as function words. Otherwise "".

    Two function words are enough, or three words in all: El Niño and crème brûlée are English too. One word that is only
    English decides against "other".
    """
    parts = _split_into_parts(words)
    if parts & _ONLY_ENGLISH:
        return ""
    function_words = parts & _NEVER_ENGLISH
    accented_words = {part for part in parts if any(not char.isascii() and find_script(char) == LATIN for char in part)}
    needed = _MIN_SIGNS + (len(function_words) < _MIN_SIGNS)
    return "other" if len(function_words | accented_words) >= needed else ""


def _split_into_parts(words: Iterable[str]) -> set[str]:
    """Return `words` in lower case, split at apostrophes, hyphens and dots: c'est, est-ce, U.S."""
    return {part for word in words for part in re.split(r"['’.-]", word.casefold())}


def _count_as_words(word: str) -> int:
    """Return how many words `word` counts for. Two signs of a script without spaces count one, and a number none."""
    if word.isascii():
        return int(any(map(str.isalpha, word)))
    scripts = [find_script(char) for char in word]
    return (sum(script in _UNSPACED_SCRIPTS for script in scripts) + 1) // 2 or int(any(scripts))
