"""Skip-softmax: blocks whose scores are far below the best before them are not weighed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.calibration import check_fingerprint
from jvdm.attention.draft import Draft
from jvdm.attention.policy import Among, AttentionCall, TokenGrid
from jvdm.attention.sparse import Sparse
from jvdm.attention.tally import Tally
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask, left_out, skipped_blocks
from pallas_kernels.attention.skipping import best_scores

ORDERS = ("near", "first", "draft")
LIMITS = tuple(np.arange(-14.0, 0.01, 0.5).tolist())
"""Limits that a calibration tries, in powers of two."""
FITTED = (0.1, 0.9)
"""Shares skipped between which a curve is fitted: the paper's code."""


@dataclasses.dataclass(frozen=True)
class SkipSoftmax(Draft):
    """Of all blocks those are left out whose weights are known to be small (arXiv:2512.12087).

    Blocks of keys are visited in an order. Where each query of a block scores below its best before
    by more than a limit, the block's softmax and product with values are skipped. Its product with
    keys was needed to know, so that a skipped block costs half: the density is `1 - skipped / 2`,
    and no less than .5. The limit is `scale / tokens` as a factor of weights, and
    `scale = a exp(b skipped)`: two numbers that `jvdm attention --search skip_softmax` fits for
    weights. A scale of 0 skips nothing.

    What is ours: the order is by distance instead of by number, because what is near is mostly
    best, and after the best more is skipped; frames above `dense_above` skip nothing. What was
    skipped is estimated, from a few blocks of queries.
    """

    equal: ClassVar[str] = "one limit serves all rows, layers and heads"

    density: float = 0.75
    dense_rows: float = 0.25
    recall_queries: int = 64
    fit: tuple[float, ...] | list[float] = ()
    """The numbers a and b of the scale, for this `block`; none skip nothing, and are refused."""
    weights: str = ""
    """Of which they are (`jvdm.attention.calibration`); empty is of any."""
    visits: str = "near"
    """Order of the blocks: "near" first, "first" by number, or "draft", the most drafted first."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        object.__setattr__(self, "fit", tuple(self.fit))
        if self.density < 0.5:
            what, fix = f"density {self.density:g} of skip-softmax", "use 0.5 to 1"
            raise ConfigError(what, "products with keys are half of the work, and all needed", fix)
        two = len(self.fit) == 2 and all(map(math.isfinite, self.fit)) and self.fit[0] >= 0
        if self.fit and not two:
            what, fix = f"fit is {self.fit}", "use what jvdm attention --search skip_softmax says"
            raise ConfigError(what, "it is a and b of a exp(b skipped), a not negative", fix)
        if self.visits not in ORDERS:
            raise ConfigError(f"visits is {self.visits!r}", f"it is one of {', '.join(ORDERS)}")

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses the numbers of other weights."""
        check_fingerprint(self.weights, digests, "a fit of skip-softmax", "skip_softmax")

    def in_layers(self, depth: int):
        """Checks that the policy is calibrated."""
        if not self.fit and not self.is_dense:
            raise ConfigError(
                "skip-softmax without the two numbers of its scale",
                "what a limit skips is measured for each model",
                "use --system skip_softmax, calibrated for tiny_t2v and nano, or what "
                "jvdm attention --weights FOLDER --search skip_softmax prints",
            )
        return super().in_layers(depth)

    def limit(self, tokens: int) -> float:
        """Returns the limit for so many keys in powers of two, 0 at most."""
        scale = self.fit[0] * math.exp(self.fit[1] * 2 * (1 - self.density))
        return math.log2(min(scale / tokens, 1.0)) if scale else -math.inf

    def listed(self, blocks: Blocks) -> int:
        """Returns the blocks that are visited: all."""
        return blocks.count

    def select(self, q, k, v, state: Tally, call: AttentionCall):
        """Lists all blocks in their order, with the limit of every block of queries."""
        if self.is_dense:
            return None, state.add(1.0, 1.0, dense=True)
        blocks = blocks_of(call.grid, self.block)
        if self.visits == "draft":
            order = jnp.argsort(-self.draft(q, k, blocks), -1)
        else:
            order = visiting_order(blocks, self.visits)
        noisy = (call.t > self.dense_above)[:, blocks.frames]
        limits = jnp.where(noisy, -jnp.inf, self.limit(call.grid.tokens))[:, None]
        mask = visiting(blocks, order, limits)
        return mask, state.add(*self.estimated(q, k, mask, blocks), dense=False)

    def estimated(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        mask: BlockMask,
        blocks: Blocks,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the density and the recall of some blocks of queries, of one at least."""
        rows = sampled(blocks, self.recall_queries)
        q, mask = some_rows(q, mask, blocks, rows)
        gone = skipped_blocks(q, k, mask)
        shares = (blocks.lengths[rows] / blocks.lengths[rows].sum()).astype(np.float32)
        told = blocks.lengths.astype(np.float32) / blocks.grid.tokens
        skipped = jnp.mean((gone @ jnp.asarray(told)) @ jnp.asarray(shares))
        scores = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(blocks.holds[None, None, None], scores * q.shape[3] ** -0.5, -jnp.inf)
        mass = jax.nn.softmax(scores, -1).reshape(*scores.shape[:3], blocks.count, -1).sum(-1)
        kept = jnp.sum(jnp.where(gone.repeat(blocks.size, 2), 0.0, mass), -1)
        held = mask.q_counted[0]
        return 1 - skipped / 2, jnp.mean(kept @ (held / held.sum()))


def visiting_order(blocks: Blocks, visits: str) -> Int[np.ndarray, "1 1 Q K"]:
    """Returns the blocks in the order in which each visits them.

    Args:
        blocks: The blocks.
        visits: "near" is by distance in frames, rows and columns, itself first; "first" by number.
    """
    places = np.indices(blocks.tiles).reshape(3, -1)
    apart = np.abs(places[:, :, None] - places[:, None]).sum(0)
    if visits == "first":
        apart = np.zeros_like(apart)
    return np.argsort(apart, -1, kind="stable").astype(np.int32)[None, None]


def visiting(
    blocks: Blocks, order: Int[Array | np.ndarray, "B N Q K"], limits: Float[Array, "b n Q"]
) -> BlockMask:
    """Returns the mask of all blocks in an order, which limits cut."""
    every, counts = jnp.asarray(order, jnp.int32), np.full(order.shape[:3], blocks.count, np.int32)
    lists = {"kv_indices": every, "kv_counts": jnp.asarray(counts), "skip_log2": limits}
    if blocks.order.is_padded:  # padding is a query too, and would need every block
        lists["q_lengths"] = jnp.asarray(blocks.lengths[None], jnp.int32)
    return dataclasses.replace(blocks.everything(), **lists)


def sampled(blocks: Blocks, queries: int) -> Int[np.ndarray, " R"]:
    """Returns blocks of about so many queries, drawn once for all layers and rows."""
    count = min(max(round(queries / blocks.size), 1), blocks.count)
    return np.sort(np.random.default_rng(0).choice(blocks.count, count, replace=False))


def some_rows(
    q: Float[Array, "B L N D"], mask: BlockMask, blocks: Blocks, rows: Int[np.ndarray, " R"]
) -> tuple[Float[Array, "B l N D"], BlockMask]:
    """Returns the queries of some blocks, and the mask of these."""
    some = q.reshape(q.shape[0], blocks.count, blocks.size, *q.shape[2:])[:, rows]
    cut = {"q_len": len(rows) * blocks.size, "q_lengths": jnp.asarray(blocks.lengths[rows][None])}
    for name in ("kv_indices", "kv_counts", "skip_log2"):
        value = getattr(mask, name)
        if value is not None:
            cut[name] = value[:, :, rows]
    return some.reshape(q.shape[0], -1, *q.shape[2:]), dataclasses.replace(mask, **cut)


class Skips(NamedTuple):
    """What a calibration adds up in one layer.

    Attributes:
        calls: f32[], calls of the layer.
        skipped: f32[N, T], share of the blocks that each of `LIMITS` leaves out, head by head.
    """

    calls: Float[Array, ""]
    skipped: Float[Array, "N T"]


@dataclasses.dataclass(frozen=True)
class SkipSearch(Sparse):
    """Dense attention that counts beside it what every one of `LIMITS` would skip."""

    recall_queries: int = 64
    visits: str = "near"
    """Order of the blocks, "near" or "first"."""

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """All rows are counted."""
        return (("all", num_rows),)

    def in_layers(self, depth: int):
        """All layers are."""
        return ((self, depth),)

    def init(self, grid: TokenGrid) -> Skips:
        """Nothing was counted."""
        return Skips(jnp.zeros(()), jnp.zeros((grid.heads, len(LIMITS))))

    def attend(self, q, k, v, state: Skips, call: AttentionCall, among: Among):
        """Attends to everything, and counts."""
        k, blocks = call.turn(k), blocks_of(call.grid, self.block)
        order = visiting_order(blocks, self.visits)
        mask = visiting(blocks, order, jnp.zeros((1, 1, blocks.count)))
        some, mask = some_rows(q, mask, blocks, sampled(blocks, self.recall_queries))
        peaks = best_scores(some, k, mask, q.shape[3] ** -0.5)

        def share(limit: Array) -> Array:
            gone: Bool[Array, "B N R M"] = left_out(peaks, jnp.full(peaks.shape[:3], limit))
            return gone.mean((0, 2, 3))

        made = jax.lax.map(share, jnp.asarray(LIMITS, jnp.float32))
        out = among(q, k, v, blocks.everything())
        return out, Skips(state.calls + 1, state.skipped + made.T)


def fitted(skipped: Float[np.ndarray, " T"], tokens: int) -> tuple[float, float]:
    """Returns a and b of `scale = a exp(b skipped)`, least squares of the logarithm.

    Args:
        skipped: Share that is skipped at each of `LIMITS`.
        tokens: Keys that limits are scales of.

    Raises:
        ConfigError: If fewer than two limits skip a share within `FITTED`.
    """
    some = (skipped >= FITTED[0]) & (skipped <= FITTED[1])
    if some.sum() < 2:
        what = f"{int(some.sum())} limits skip between {FITTED[0]:.0%} and {FITTED[1]:.0%}"
        why = f"{skipped.min():.2f} to {skipped.max():.2f} of the blocks are skipped"
        raise ConfigError(what, f"{why}, and a curve needs 2", "use smaller blocks or more tokens")
    scales = np.log(2.0) * np.asarray(LIMITS)[some] + math.log(tokens)
    slope, start = np.polyfit(skipped[some], scales, 1)
    return float(f"{math.exp(start):.4g}"), float(f"{slope:.4g}")
