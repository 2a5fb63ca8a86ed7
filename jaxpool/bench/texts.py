"""Texts to measure with: lengths as real traffic has them, reproducible by seed."""

from __future__ import annotations

import numpy as np

MEDIAN, SIGMA, LONGEST = 60, 0.8, 512
"""Tokens of a text: lognormal with this median and spread, cut to 1 … ``LONGEST``."""

FREQUENT = (
    "the of and to a in that it is was for on with he be at by this had not are but from or have an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its "
    "about into than them can only other new some could time these two may then do first any my now such like our "
    "over man me even most made after also did many before must through back years where much your way well down "
    "should because each just those people how too little state good very make world still own see men work long "
    "get here between both life being under never day same another know while last might us great old year off "
    "come since against go came right used take three "
)
"""Every tokenizer has these, nearly all as one token each, so that words count as tokens do."""

WORDS = FREQUENT.split()


def mix(count: int, *, longest: int = LONGEST, seed: int = 0) -> list[str]:
    """``count`` texts; with the two special tokens that most encoders add, none is longer than ``longest`` tokens."""
    rng = np.random.default_rng(seed)
    sizes = _lengths(rng, count, longest)
    return [" ".join(rng.choice(WORDS, max(1, size - 2))) for size in sizes]


def lengths(count: int, *, longest: int = LONGEST, seed: int = 0) -> np.ndarray:
    """Tokens of the texts of `mix`, int64 ``[count]``."""
    return _lengths(np.random.default_rng(seed), count, longest)


def _lengths(rng: np.random.Generator, count: int, longest: int) -> np.ndarray:
    return np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, count), 1, longest).astype(np.int64)
