"""`demo://reviews`: short reviews of films and devices, from a small grammar, for a first run with no data at hand.

They are made so that word counts do not tell the label but the sentence does. A review's sentiment is that of its main
clause. Beside it there may stand a concession of the opposite sentiment ("Although the cast is superb, …"), a clause
that turns its own words around ("nobody could call the plot dull"), and a remark on something else altogether ("The
queue at the cinema was awful."). Two labels in a hundred are wrong, as in any real set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

__all__ = ["LABELS", "NOISE", "VERSION", "reviews"]

VERSION = 1
"""Changes whenever the same arguments would give other rows."""
LABELS = ("negative", "positive")
NOISE = 0.02
"""Share of labels that are wrong."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ASPECTS = {
    "film": _words(
        "plot acting dialogue soundtrack ending pacing script cast editing photography humour villain opening "
        "costumes music direction story scenery finale romance"
    ),
    "device": _words(
        "battery screen sound keyboard camera build software charger strap handle motor design display speaker "
        "packaging manual microphone finish lens hinge"
    ),
}
_GOOD = _words(
    "excellent superb brilliant wonderful charming delightful impressive gorgeous terrific great lovely fantastic "
    "outstanding enjoyable clever elegant pleasant beautiful remarkable perfect"
)
_BAD = _words(
    "awful dreadful terrible boring dull clumsy weak disappointing horrible poor cheap tedious annoying ugly lousy "
    "mediocre miserable frustrating pathetic shoddy"
)
_ADVERBS = ("really", "truly", "quite", "simply", "rather", "absolutely", "surprisingly", "honestly")
_PLAIN = (
    "the {aspect} is {adverb} {word}",
    "the {aspect} is {word}",
    "the {aspect} felt {word}",
    "I found the {aspect} {adverb} {word}",
    "the {aspect} turned out {word}",
    "the {aspect} seemed {word} to me",
)
_TURNED = (
    "the {aspect} is anything but {word}",
    "the {aspect} is not {word} at all",
    "the {aspect} is never {word}",
    "nobody could call the {aspect} {word}",
    "I would not say the {aspect} is {word}",
    "there is nothing {word} about the {aspect}",
    "the {aspect} was far from {word}",
    "I can't call the {aspect} {word}",
)
_CONTRASTS = (
    "although {other}, {main}",
    "even though {other}, {main}",
    "while {other}, {main}",
    "{other}, but {main}",
    "{other}, yet {main}",
    "{other}; still, {main}",
    "{other}. However, {main}",
    "{main}, although {other}",
    "{main}, even though {other}",
    "{main}, even if {other}",
)
_VERDICT_TAILS = ("", "", "", " in the end", " for me", " and that decides it", " overall")
_NEUTRAL = (
    "I got it on a {day}.",
    "My {person} was there too.",
    "It was {day} evening.",
    "My {person} told me about it.",
    "We talked about it on {day}.",
    "I wrote this on a {day}.",
)
_ELSEWHERE = (
    "The weather was {word} that {day}.",
    "My {person} had a {word} dinner before.",
    "The bus ride there was {word}.",
    "The {day} before had been {word}.",
    "Traffic in town was {word}.",
    "My {person} had a {word} week at work.",
    "The coffee next door was {word}.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PEOPLE = ("brother", "sister", "neighbour", "mother", "uncle", "colleague", "cousin", "flatmate")


def reviews(rows: int, seed: int) -> Iterator[tuple[str, str]]:
    """`rows` pairs of text and label. Fewer rows of the same seed are the first of more rows."""
    # Only `random()` is drawn from: it alone is promised to give the same numbers in every Python version.
    rng = Random(seed)
    for _ in range(rows):
        positive = rng.random() < 0.5
        text = _review(rng, positive)
        label = positive if rng.random() >= NOISE else not positive
        yield text, LABELS[label]


def _pick(rng: Random, items: Sequence[str]) -> str:
    return items[int(rng.random() * len(items))]


def _review(rng: Random, positive: bool) -> str:
    kind = "film" if rng.random() < 0.5 else "device"
    first, second = _pick(rng, _ASPECTS[kind]), _pick(rng, _ASPECTS[kind])
    while second == first:
        second = _pick(rng, _ASPECTS[kind])
    main = _clause(rng, first, positive, turned=0.3)
    if rng.random() < 0.45:
        other = _clause(rng, second, not positive, turned=0.1)
        sentence = _pick(rng, _CONTRASTS).format(main=main, other=other)
    else:
        sentence = main + _pick(rng, _VERDICT_TAILS)
    sentence = ". ".join(part[0].upper() + part[1:] for part in sentence.split(". ")) + "."
    if rng.random() < 0.4:
        remark = _remark(rng)
        return f"{remark} {sentence}" if rng.random() < 0.5 else f"{sentence} {remark}"
    return sentence


def _clause(rng: Random, aspect: str, positive: bool, turned: float) -> str:
    """A clause of the given sentiment; with probability `turned`, an opposite word with a negation."""
    negate = rng.random() < turned
    word = _pick(rng, _GOOD if positive != negate else _BAD)
    return _pick(rng, _TURNED if negate else _PLAIN).format(aspect=aspect, word=word, adverb=_pick(rng, _ADVERBS))


def _remark(rng: Random) -> str:
    word = _pick(rng, _GOOD if rng.random() < 0.5 else _BAD)
    return _pick(rng, _NEUTRAL if rng.random() < 0.5 else _ELSEWHERE).format(
        day=_pick(rng, _DAYS), person=_pick(rng, _PEOPLE), word=word
    )
