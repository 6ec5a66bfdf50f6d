"""Generated reviews, whose verdict depends on the order of their words.

They are computed from `gpuzoo.randomness` alone, so that every processor makes the same
ones.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.columns import Column, Columns

NAME = "reviews"
TARGET = "verdict"
ROWS = 8_000
_DRAWS = 40  # uniform numbers of a review
_THINGS = (
    "room", "bed", "breakfast", "staff", "view", "pool", "shower", "lobby", "garden",
    "kitchen", "bar", "music", "wifi", "parking", "lift", "terrace", "food", "coffee",
    "service", "location", "bathroom", "balcony", "sauna", "reception",
)  # fmt: skip
_GOOD = (
    "good", "great", "clean", "lovely", "friendly", "quiet", "comfortable", "excellent",
    "spacious", "charming", "bright", "superb", "cosy", "helpful", "delicious",
)  # fmt: skip
_BAD = (
    "bad", "dirty", "noisy", "awful", "rude", "cramped", "cold", "terrible", "broken",
    "smelly", "dull", "overpriced", "gloomy", "stale", "damp",
)  # fmt: skip
# Before a word of praise or blame: what it makes of it.
_PLAIN = ("", "really", "quite", "very", "simply", "rather", "truly")
_TURNED = ("not", "never", "hardly", "anything but", "far from", "by no means")
_VERBS = ("was", "is", "seemed", "looked", "felt")
_BEGUN = (
    "", "we stayed for two nights .", "a weekend with the children .",
    "booked at the last minute .", "our third visit .", "arrived late at night .",
    "travelled alone this time .",
)  # fmt: skip
_JOINED = (",", ". and", ", while", ". also ,", "; besides ,")
# What follows outweighs all before it.
_AFTER_ALL = (". but in the end", "- all in all , however ,", ". what counts though :")
_ENDED = (
    "", ". we had been told so", ". ask anyone", ". that is my opinion", ". see for "
    "yourself", ". others may differ",
)  # fmt: skip
_MISTYPED = 0.03
"""Fraction of words with a letter too many."""


def make() -> dict:
    """Return name, source, columns and the target of 8,000 reviews of hotels.

    A review has one to four clauses; each praises or blames a thing, and a word such as
    "hardly" turns it round. The `verdict` is "good" or "bad" if all clauses are, else
    "mixed"; the clause after words such as "in the end", if there is one, decides
    alone. Three words of a hundred are mistyped.
    """
    draws = randomness.uniform((ROWS, _DRAWS), 0, NAME, "words")
    made = [_review(iter(row)) for row in draws.tolist()]
    hotels = 1 + np.floor(randomness.uniform((ROWS,), 0, NAME, "hotel") * 40)
    columns = {
        "hotel": Column("hotel", values=hotels),
        "review": Column("review", texts=[text for text, _ in made]),
        TARGET: Column(TARGET, texts=[verdict for _, verdict in made]),
    }
    return {
        "name": NAME, "source": "computed by gpuzoo", "target": TARGET,
        "table": Columns(f"data {NAME!r}", columns),
    }  # fmt: skip


def _review(draws) -> tuple[str, str]:
    """Return a review and its verdict."""
    parts, found = [_one(_BEGUN, draws)], set()
    count = 1 + int(next(draws) * 4)
    decided = count > 1 and next(draws) < 0.35
    for place in range(count):
        clause, verdict = _clause(draws)
        last = place == count - 1
        if place:
            parts.append(_one(_AFTER_ALL if last and decided else _JOINED, draws))
        parts.append(clause)
        found = {verdict} if last and decided else found | {verdict}
    parts.append(_one(_ENDED, draws))
    text = " ".join(filter(None, parts))
    return _mistyped(text, draws), "mixed" if len(found) > 1 else found.pop()


def _clause(draws) -> tuple[str, str]:
    """Return a clause, and whether it is good or bad."""
    praised = next(draws) < 0.5
    word = _one(_GOOD if praised else _BAD, draws)
    turned = next(draws) < 0.4
    before = _one(_TURNED if turned else _PLAIN, draws)
    text = f"the {_one(_THINGS, draws)} {_one(_VERBS, draws)} {before} {word}"
    return " ".join(text.split()), "good" if praised != turned else "bad"


def _one(choices: tuple[str, ...], draws) -> str:
    return choices[int(next(draws) * len(choices))]


def _mistyped(text: str, draws) -> str:
    """Return a text in which some words have a letter twice, by one draw."""
    words, draw = text.split(" "), next(draws)
    for place, word in enumerate(words):
        draw = (draw * 7919 + place) % 1.0
        if draw < _MISTYPED and word.isalpha():
            at = int(draw / _MISTYPED * len(word))
            words[place] = word[: at + 1] + word[at:]
    return " ".join(words)
