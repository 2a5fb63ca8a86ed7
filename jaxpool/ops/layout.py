"""Where the texts of a batch lie: one to a row and padded, or several packed into a row.

Every family asks a ``Layout`` what depends on that: positions, which tokens are real, who may see whom, what a
convolution or a recurrence carries on, where a text is pooled. So none of them knows whether its rows are packed.

Causal models may have computed before what all texts of a batch begin with: rows then hold what follows, and the layers
read what they noted of the beginning.

Shape letters: B rows, T tokens of a row, M texts of a row (its segments), W taps of a convolution, N = B * M texts,
P places for tokens of a shared beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Layout:
    """The texts of one batch. Make one with ``padded`` or ``packed``.

    Padded, a row is one text from its first token on, and whatever can be said by its length alone is: masks are
    ``[B, 1, T]``, positions ``[T]``. Packed, texts follow one another and everything is said per token.

    Attributes:
        width: tokens of a row, padding included.
        lengths_BM: int32, tokens of each text; at least 1 where padded, 0 for no text where packed.
        starts_BM: int32, where each begins; None where padded: at 0.
        segment_BT: int32, which text of its row a token belongs to, from 1; 0 for padding. None where padded.
        position_BT: int32, place of a token in its text, 0 for padding. None where padded.
        until_BT: int32, where a row branches: the first index of its row that does not see this token any more. None
            where no row branches.
        before: int32 scalar, tokens of the beginning that all texts share and no row holds; None where there is none.
        past: what the layers noted of it, or what the layer noted that reads this; None where there is no beginning.
        reach: P, of which the first ``before`` are real.
        notes: where layers write what texts behind the first row's need to know of it; None: they need not.
    """

    width: int = field(metadata={"static": True})
    lengths_BM: Any  # noqa: N815 - shape letters
    starts_BM: Any = None  # noqa: N815
    segment_BT: Any = None  # noqa: N815
    position_BT: Any = None  # noqa: N815
    until_BT: Any = None  # noqa: N815
    before: Any = None
    past: Any = None
    reach: int = field(default=0, metadata={"static": True})
    notes: dict[str, Any] | None = field(default=None, metadata={"static": True})

    @classmethod
    def padded(cls, lengths_B: jax.Array, width: int) -> Layout:
        """One text per row, ``lengths_B`` tokens from the row's first on."""
        return cls(width, lengths_B[:, None])

    @classmethod
    def packed(cls, segment_BT: jax.Array, starts_BM: jax.Array, lengths_BM: jax.Array) -> Layout:
        """M texts per row, in any order and with any gaps; see the attributes."""
        index_BT = jnp.maximum(segment_BT - 1, 0)
        begun_BT = jnp.take_along_axis(starts_BM, index_BT, axis=1)
        position_BT = jnp.where(segment_BT > 0, jnp.arange(segment_BT.shape[1]) - begun_BT, 0)
        return cls(segment_BT.shape[1], lengths_BM, starts_BM, segment_BT, position_BT)

    @classmethod
    def branched(cls, lengths_B: jax.Array, position_BT: jax.Array, until_BT: jax.Array) -> Layout:
        """One text per row that ends in a tree of continuations, its tokens in preorder.

        What stands behind a token within ``until_BT`` descends from it, so causal attention along a branch sees the
        text and its own branch only, at positions as if it stood alone. Convolutions and recurrences cannot branch.
        """
        return cls(position_BT.shape[1], lengths_B[:, None], position_BT=position_BT, until_BT=until_BT)

    def behind(self, before: jax.Array, past: Any, reach: int) -> Layout:
        """The same rows, of texts whose first tokens are not in them; see the attributes."""
        return replace(self, before=before, past=past, reach=reach)

    def noting(self) -> Layout:
        """The same rows, the first of which is a beginning that layers write ``notes`` of."""
        return replace(self, notes={})

    def of_layer(self, past: Any) -> Layout:
        """What one layer sees: its own past, and room for its own notes."""
        return replace(self, past=past, notes=None if self.notes is None else {})

    @property
    def is_packed(self) -> bool:
        """Whether rows hold several texts."""
        return self.segment_BT is not None

    @property
    def lengths_B(self) -> jax.Array:  # noqa: N802
        """Tokens of each row's only text: what kernels that know lengths take."""
        assert not self.is_packed, "packed rows have no single length"
        return self.lengths_BM[:, 0]

    @property
    def position(self) -> jax.Array:
        """Place of every token in its text: int32 ``[T]``, or ``[B, T]`` where packed."""
        position = jnp.arange(self.width) if self.position_BT is None else self.position_BT
        return position if self.before is None else position + self.before

    @property
    def real_BT(self) -> jax.Array:  # noqa: N802
        """Bool: which tokens are no padding."""
        if self.segment_BT is not None:
            return self.segment_BT > 0
        return jnp.arange(self.width)[None, :] < self.lengths_BM

    @property
    def begins_BT(self) -> jax.Array | None:  # noqa: N802
        """Bool: where a recurrence must forget what came before; None: nowhere, every row is one text."""
        return None if self.position_BT is None else self.position_BT == 0

    @property
    def first_BM(self) -> jax.Array:  # noqa: N802
        """Index in its row of each text's first token."""
        return jnp.zeros_like(self.lengths_BM) if self.starts_BM is None else self.starts_BM

    @property
    def last_BM(self) -> jax.Array:  # noqa: N802
        """Index in its row of each text's last token."""
        return jnp.maximum(self.first_BM + self.lengths_BM - 1, 0)

    def seen(self, queries: jax.Array | None = None, keys: jax.Array | None = None) -> jax.Array:
        """Bool: which keys belong to a query's own text, ``[B, 1, S]``, or ``[B, T, S]`` where packed.

        Args:
            queries: their index in their rows, ``[T]`` or ``[B, T]``; None: every token is one.
            keys: index of the keys in all rows, ``[S]``; None: every token is one.
        """
        if self.segment_BT is None:
            return (self.real_BT if keys is None else self.real_BT[:, keys])[:, None, :]
        asked_BS = self.segment_BT if keys is None else self.segment_BT[:, keys]
        own_BT = self.segment_BT
        if queries is not None:
            own_BT = own_BT[:, queries] if queries.ndim == 1 else self.at(own_BT, queries)
        # Padding sees padding: a query that sees nothing is undefined in some kernels.
        return own_BT[:, :, None] == asked_BS[:, None, :]

    def at(self, x_BT: jax.Array, index_BM: jax.Array) -> jax.Array:
        """``[B, T, ...] -> [B, M, ...]``: the values at ``index_BM`` of each row."""
        index = index_BM.reshape(*index_BM.shape, *(1,) * (x_BT.ndim - 2))
        return jnp.take_along_axis(x_BT, index, axis=1)

    def spread(self, x_BM: jax.Array) -> jax.Array:
        """``[B, M, ...] -> [B, T, ...]``: to each token what its text has; ``[B, 1, ...]`` where padded."""
        return x_BM if self.segment_BT is None else self.at(x_BM, jnp.maximum(self.segment_BT - 1, 0))

    def total(self, x_BT: jax.Array) -> jax.Array:
        """float32 ``[B, T, ...] -> [B, M, ...]``: sums over each text's tokens; padding does not enter."""
        # where, not a product: padding may hold anything, and 0 * inf is not 0.
        real_BT = self.real_BT.reshape(*self.real_BT.shape, *(1,) * (x_BT.ndim - 2))
        x_BT = jnp.where(real_BT, x_BT.astype(jnp.float32), 0.0)
        if self.segment_BT is None:
            return x_BT.sum(1, keepdims=True)
        # A product here: it reads the row once, not once per text. Rows with a text that is not finite are computed
        # again, text by text, whatever is done here: attention carries such numbers along the row.
        own_BMT = self._own_BMT().astype(jnp.float32)
        return jnp.einsum("bmt,bt...->bm...", own_BMT, x_BT, precision=jax.lax.Precision.HIGHEST)

    def highest(self, x_BT: jax.Array) -> jax.Array:
        """``[B, T] -> [B, M]``: the highest of numbers, of at least -1, over each text's tokens; -1 of none."""
        if self.segment_BT is None:
            return jnp.where(self.real_BT, x_BT, -1).max(1, keepdims=True)
        return jnp.where(self._own_BMT(), x_BT[:, None, :], -1).max(2)

    def _own_BMT(self) -> jax.Array:  # noqa: N802
        """Bool: which tokens are of each text."""
        return self.segment_BT[:, None, :] == 1 + jnp.arange(self.lengths_BM.shape[1])[:, None]

    def counted(self, flags_BT: jax.Array) -> jax.Array:
        """int32 ``[B, T]``: how many of a text's tokens up to this one, itself included, have the flag."""
        flags_BT = flags_BT.astype(jnp.int32)
        count_BT = jnp.cumsum(flags_BT, axis=1)
        if self.segment_BT is None:
            return count_BT
        return count_BT - self.spread(self.at(count_BT - flags_BT, self.first_BM))

    def trail(self, x_BTD: jax.Array, taps: int) -> list[jax.Array]:
        """Each token's predecessors in its text and itself, the farthest first: so many ``[B, T, D]``.

        Zeros before a text's beginning.
        """
        n_rows, n_tokens, width = x_BTD.shape
        tail_WD = jnp.zeros((taps - 1, width), x_BTD.dtype) if self.past is None else self.past["tail"]
        tail_BWD = jnp.broadcast_to(tail_WD, (n_rows, *tail_WD.shape))
        padded = jnp.concatenate([tail_BWD, x_BTD], axis=1)
        if self.notes is not None:
            self.notes["tail"] = jax.lax.dynamic_slice_in_dim(padded[0], self.lengths_BM[0, 0], taps - 1)
        moved = [padded[:, tap : tap + n_tokens] for tap in range(taps)]
        if self.position_BT is None:
            return moved
        # Of a text that does not begin its row, what stands before it in the row is another's.
        place_BT1 = self.position_BT[:, :, None]
        return [
            jnp.where(place_BT1 >= steps, x, 0 if self.past is None else _before(tail_WD, self.position_BT - steps))
            for steps, x in zip(reversed(range(taps)), moved)
        ]

    def neighbours(self, x_BTD: jax.Array, taps: int) -> jax.Array:
        """Each token with those around it, ``[B, T, W, D]``; zeros beyond the ends of its text. ``taps`` is odd."""
        side, n_tokens = taps // 2, x_BTD.shape[1]
        real_BTD = jnp.where(self.real_BT[:, :, None], x_BTD, 0)
        padded = jnp.pad(real_BTD, ((0, 0), (side, side), (0, 0)))
        around_BTWD = jnp.stack([padded[:, tap : tap + n_tokens] for tap in range(taps)], axis=2)
        if self.segment_BT is None:
            return around_BTWD
        beside = jnp.pad(self.segment_BT, ((0, 0), (side, side)))
        own = jnp.stack([beside[:, tap : tap + n_tokens] == self.segment_BT for tap in range(taps)], axis=2)
        return jnp.where(own[..., None], around_BTWD, 0)

    def delayed(self, ids_BT: jax.Array, first_BM: jax.Array) -> jax.Array:
        """Each text one token later, behind ``first_BM``; its last token falls off: ``[B, T]``."""
        if self.position_BT is None:
            return jnp.concatenate([first_BM, ids_BT[:, :-1]], axis=1)
        moved_BT = jnp.pad(ids_BT, ((0, 0), (1, 0)))[:, :-1]
        return jnp.where(self.position_BT == 0, self.spread(first_BM), moved_BT)


def _before(tail_WD: jax.Array, place_BT: jax.Array) -> jax.Array:
    """``[B, T, D]``: what stood at negative places, the last of which is -1."""
    return tail_WD[jnp.clip(len(tail_WD) + place_BT, 0, len(tail_WD) - 1)]
