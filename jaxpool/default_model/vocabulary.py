"""Makes an encoder smaller without training: fewer word pieces, fewer layers; and teaches it common emoji.

A dropped word piece costs no coverage: its words split into smaller pieces, down to single characters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

EMOJI = {
    "good": "👍 👌 ✅ 💯 ✔",
    "bad": "👎 ❌",
    "love": "❤ 💕 💖 💗 💙 💚 💛 💜 🧡 🖤 🤍 ♥ 💓 💞 💘 😍 🥰 😘 😻",
    "happy": "😀 😃 😄 😁 😊 🙂 ☺ 😎 😇 🤗 🥳 😺",
    "funny": "😂 🤣 😆 😅 😹",
    "wink": "😉 😜 😏",
    "great": "🎉 🎊 🔥 🚀 ✨ ⭐ 🌟 🏆 🙌 👏 💪 🤩",
    "thanks": "🙏",
    "sad": "😞 😔 😢 😭 🙁 ☹ 😥 😿 😟 😓 💔",
    "angry": "😠 😡 🤬 👿 😤",
    "terrible": "😖 😫 😩 😣 😱 😨 😰",
    "disgusting": "🤢 🤮 💩",
    "boring": "😒 🙄 😑 😴 🥱",
    "confused": "😕 🤔 😐 🤷",
}
"""Word -> emoji that start with that word's vector. The base vocabulary has no emoji at all."""

_MODIFIERS = "🏻🏼🏽🏾🏿"
"""Skin tones; as tokens of their own they would turn a thumb into an unknown word, so they get a zero vector."""


def _basic(piece: str) -> bool:
    """Whether a word piece is a single character of Latin script, a digit, punctuation or a symbol of that kind."""
    character = piece.removeprefix("##") if len(piece) > 1 else piece
    return len(character) == 1 and (ord(character) < 0x250 or 0x2000 <= ord(character) < 0x2300)


def choose_pieces(tokenizer: dict[str, Any], texts: Iterable[str], size: int) -> list[str]:
    """The ``size`` word pieces to keep, in their old order: specials, single characters, then the most frequent.

    Args:
        tokenizer: content of a WordPiece ``tokenizer.json``.
        texts: what pieces are counted on; every text counts, so it should be varied rather than long.
        size: number of pieces to keep.
    """
    from tokenizers import Tokenizer

    counter = Tokenizer.from_str(json.dumps(tokenizer | {"padding": None, "truncation": None}))
    counts = Counter(piece for encoding in counter.encode_batch(list(texts)) for piece in encoding.tokens)
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    must = {token["content"] for token in tokenizer["added_tokens"]} | set(filter(_basic, vocabulary))
    # BERT's vocabulary is in the order of its own corpus' frequencies, which breaks ties.
    ranked = sorted(vocabulary, key=lambda piece: (piece not in must, -counts[piece], vocabulary[piece]))
    return sorted(ranked[:size], key=vocabulary.__getitem__)


def rewrite_tokenizer(tokenizer: dict[str, Any], pieces: list[str]) -> dict[str, Any]:
    """``tokenizer.json`` for exactly these word pieces, numbered in this order."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    result = json.loads(json.dumps(tokenizer)) | {"padding": None, "truncation": None}
    result["model"]["vocab"] = ids
    for token in result["added_tokens"]:
        token["id"] = ids[token["content"]]
    for name, special in result["post_processor"]["special_tokens"].items():
        special["ids"] = [ids[name]]
    return result


def emoji_pieces() -> dict[str, str | None]:
    """New word pieces -> the word whose vector they start with (None: zeros).

    An emoji also comes glued to a word or to another emoji, hence each piece twice.
    """
    words: dict[str, str | None] = {emoji: word for word, emojis in EMOJI.items() for emoji in emojis.split()}
    words |= dict.fromkeys(_MODIFIERS)
    return words | {f"##{emoji}": word for emoji, word in words.items()}


def shrink(
    tensors: dict[str, np.ndarray], old_vocabulary: dict[str, int], pieces: list[str], layers: int
) -> dict[str, np.ndarray]:
    """The tensors of a BERT encoder with the embedding rows of ``pieces`` and its first ``layers`` layers.

    Args:
        tensors: Hugging Face names, no prefix.
        old_vocabulary: piece -> row.
        pieces: from ``choose_pieces``, then the emoji pieces.
        layers: how many to keep.
    """
    table, emoji = tensors["embeddings.word_embeddings.weight"], emoji_pieces()

    def row(piece: str) -> np.ndarray:
        if piece in old_vocabulary:
            return table[old_vocabulary[piece]]
        word = emoji[piece]
        return np.zeros_like(table[0]) if word is None else table[old_vocabulary[word]]

    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < layers
    }
    kept.pop("embeddings.position_ids", None)
    return kept | {"embeddings.word_embeddings.weight": np.stack([row(piece) for piece in pieces])}
