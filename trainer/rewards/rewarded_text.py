"""The text of a candidate that is searched with, and that a student learns for it: one text for both.

A student's own text is read as the output of the served model. A teacher's text is read as a row of a table, and cut to what
a student may write. The candidate of a fast expander holds its weighted terms as `params["expansion"]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from querylift.plugin.expansion import Expansion, clean_prose, expansion_from_text, parse_output
from querylift.trainer.candidates import Candidate

STUDENT_PREFIX = "student"
"""A method that begins so is the student's own. Its text is raw output and is read as the served model's is."""
EXPANSION_PARAM = "expansion"
"""The entry of a candidate's `params` that holds the weighted terms of a fast expander."""

TextCutter = Callable[[str], str]
"""Returns the beginning of a text that a student may write, or the whole text."""


class RewardedText(NamedTuple):
    """What is rewarded of a candidate, and learned for it.

    `expansion` is None when no word is left. `passage` is the one line that the student must write to be served so, "" when
    no word is left. `ended` is False when the candidate goes on after the passage. `was_cut` says that we cut it.
    """

    expansion: Expansion | None
    passage: str
    ended: bool
    was_cut: bool


def make_rewarded_text(candidate: Candidate, *, cut: TextCutter = str) -> RewardedText:
    """Return the text of `candidate`. `cut` shortens a teacher's text; the default keeps it whole.

    The passage is the candidate's text, cleaned and cut. Where the served parser would read other words out of that line,
    the line holds the served words alone.
    """
    if EXPANSION_PARAM in candidate.params:
        expansion = Expansion.from_json(candidate.params[EXPANSION_PARAM])
        return _make_text(candidate, expansion, clean_prose(candidate.text), was_cut=False)
    if candidate.method.startswith(STUDENT_PREFIX):
        own_expansion = parse_output(candidate.text, query=candidate.query)
        return _make_text(candidate, own_expansion, clean_prose(candidate.text), was_cut=False)
    prose = clean_prose(candidate.text)
    text = cut(prose)
    return _make_text(candidate, expansion_from_text(text), text, was_cut=text != prose)


def _make_text(candidate: Candidate, expansion: Expansion | None, text: str, *, was_cut: bool) -> RewardedText:
    ended = candidate.ended and not was_cut
    if expansion is None:
        return RewardedText(None, "", ended, was_cut)
    is_read_alike = parse_output(text, query=candidate.query) == expansion
    return RewardedText(expansion, text if is_read_alike else expansion.text, ended, was_cut)
