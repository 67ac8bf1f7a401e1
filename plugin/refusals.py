"""Tell a model's refusal ("I'm sorry, but I can't assist with that") from a passage. A refusal is never an expansion."""

from __future__ import annotations

import re

_CANNOT = r"(?:can['’]?t|cannot|can not|won['’]?t|will not|am unable|['’]m unable|am not able|['’]m not able)"
_HELPFUL_VERBS = (
    r"(?:answer|assist|comply|create|discuss|engage|fulfil|fulfill|generate|give|help|offer|process|produce|provide|share|"
    r"support|write)"
)
_REFUSALS = (
    # I can't assist with that. | I am unable to provide ... | "I can't help falling in love" is a song.
    rf"(?:unfortunately,? )?I ?{_CANNOT} (?:be able )?(?:to )?{_HELPFUL_VERBS}\b(?! (?:but|falling|it\b))",
    # I'm sorry, but I can't ... | Sorry, this is not possible. | I apologize, but I am unable ...
    rf"(?:(?:I['’]m|I am|We['’]re|we are) )?(?:very |so |really )?sorry\b[^.\n]{{0,60}}(?:{_CANNOT}|not possible|not allowed)\b",
    rf"(?:I|my) apolog[a-z]+\b[^.\n]{{0,60}}{_CANNOT}\b",
    r"as an? (?:AI|artificial intelligence|(?:large )?language model)\b[^.\n]{0,40}\bI\b",
    r"(?:es )?tut mir (?:sehr )?leid\b[^.\n]{0,60}\b(?:kann|nicht)\b",
    r"(?:lo siento|lo lamento|lamento)\b[^.\n]{0,60}\bno (?:puedo|es posible)\b",
    r"(?:je suis )?désolée?\b[^.\n]{0,60}\bne (?:peux|suis)\b",
    r"mi dispiace\b[^.\n]{0,60}\bnon (?:posso|è)\b",
    r"(?:sinto muito|desculpe)\b[^.\n]{0,60}\bnão (?:posso|consigo)\b",
    r"(?:het spijt me|sorry)\b[^.\n]{0,60}\bkan\b[^.\n]{0,40}\bniet\b",
    r"(?:很?抱歉|对不起)[^。]{0,30}(?:无法|不能)",
    r"申し訳(?:ありません|ございません)[^。]{0,60}(?:できません|お答え|いたしかねます)",
)
_REFUSAL = re.compile(rf"\W*(?:{'|'.join(_REFUSALS)})", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether a model's answer begins as a refusal. The phrases are those of common models in nine languages."""
    return bool(_REFUSAL.match(text))
