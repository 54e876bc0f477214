"""Sparse-vDiT: every head has a pattern of its own, which was searched for before the run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.calibration import check_fingerprint
from jvdm.attention.patterns import PATTERNS, WINDOWS, PatternTable, candidates, pattern
from jvdm.attention.policy import Among, AttentionCall, TokenGrid
from jvdm.attention.sparse import Sparse
from jvdm.attention.tally import Tally
from jvdm.errors import ConfigError
from pallas_kernels import block_mass


@dataclasses.dataclass(frozen=True)
class SparseVDiT(Sparse):
    """Patterns by layer and head from a table, the same in all rows and for all prompts.

    Patterns depend on the head, hardly on the prompt, so that they are chosen before any run
    (`PatternSearch`). The table holds what each pattern costs and how much it changes each head;
    `density`, the mean over heads, says what each of them is given (`PatternTable.chosen`).

    Reference: Sparse-vDiT, Chen et al., arXiv:2506.03065, section 3.2. Ours: errors are relative
    to the outputs of the layer, for bare ones mean another thing in every model; patterns are of
    blocks and may have several sizes; the paper sets the weight of a cost, and a threshold beyond
    which a head stays dense, here one weight does both and follows from the density.
    """

    equal: ClassVar[str] = "its table says what each head does"

    dense_rows: float = 0.25
    dense_layers: int = 1
    table: str = ""
    """A file of `jvdm attention --search sparse_vdit`, or its text; without one all heads have
    `pattern`, of the share of blocks that `density` says."""
    pattern: str = "diagonal"
    """What all heads do without a table: "diagonal", "crossing", "stripe", "window", "tube" or
    "plane"."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range, or a table that is none."""
        super().__post_init__()
        if self.pattern not in (known := (*PATTERNS, *WINDOWS)):
            raise ConfigError(f"pattern is {self.pattern!r}", f"it is one of {known}")
        if self.table:
            object.__setattr__(self, "table", PatternTable.read(self.table).text())

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses the table of other weights."""
        made_for = _read(self.table).weights if self.table else ""
        check_fingerprint(made_for, digests, "a table of patterns", "sparse_vdit")

    def in_layers(self, depth: int):
        """Checks that the table has as many layers."""
        if self.table and len(_read(self.table).errors) != depth:
            what = f"a table of patterns of {len(_read(self.table).errors)} layers"
            raise ConfigError(what, f"the network has {depth}", "use the table of this model")
        return super().in_layers(depth)

    def order(self, grid: TokenGrid):
        """Tokens of a block lie together."""
        return None if self.is_dense else self._blocks(grid).order

    def init(self, grid: TokenGrid) -> Tally:
        """Checks that the table is of this grid, and allows the density."""
        if self.table and not self.is_dense:
            blocks = self._blocks(grid)
            _read(self.table).check(blocks)
            self.modes(blocks)
            return Tally.empty()
        return super().init(grid)

    def modes(self, blocks: Blocks) -> Int[np.ndarray, "layers N"]:
        """Returns what every head does, an index of `candidates`, -1 for all blocks."""
        return _read(self.table).chosen(self.density, blocks, self.dense_layers)

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the pattern of each head of the layer."""
        if not self.table:
            count = self.listed(blocks)
            return pattern(blocks, self.pattern, count)[None, None], count
        table, modes = _read(self.table), self.modes(blocks)
        tried = table.tried
        kinds = [pattern(blocks, name, count) for name, count in tried]
        kinds = jnp.asarray(np.stack([*kinds, np.ones_like(kinds[0])]))
        striped = np.array([count if name == "stripe" else 0 for name, count in (*tried, ("", 0))])
        mine, widest = jnp.asarray(modes)[call.layer], table.columns.shape[2]
        kept = jnp.arange(widest)[None] < jnp.asarray(striped)[mine][:, None]
        columns = jnp.where(kept, jnp.asarray(table.columns)[call.layer], -1)
        stripes = (columns[..., None] == jnp.arange(blocks.count)[None, None]).any(1)
        marked = jnp.where(kept.any(-1)[:, None, None], stripes[:, None], kinds[mine])
        return marked[None], blocks.count if (modes < 0).any() else widest

    def select(self, q, k, v, state: Tally, call: AttentionCall):
        """Lists the patterns in the blocks of the table."""
        if not self.table or self.is_dense or self.block == _read(self.table).block:
            return super().select(q, k, v, state, call)
        size = _read(self.table).block
        return dataclasses.replace(self, block=size).select(q, k, v, state, call)

    def _blocks(self, grid: TokenGrid) -> Blocks:
        return blocks_of(grid, _read(self.table).block if self.table else self.block)


class Trials(NamedTuple):
    """What a search adds up in one layer.

    Attributes:
        power: f32[], mean square of the outputs of all heads.
        errors: f32[N, C], mean square of what each of `candidates` changes.
        mass: f32[N, K], attention that each block of keys receives.
    """

    power: Float[Array, ""]
    errors: Float[Array, "N candidates"]
    mass: Float[Array, "N K"]


@dataclasses.dataclass(frozen=True)
class PatternSearch(Sparse):
    """Dense attention that tries every pattern beside it, in all rows and branches of guidance."""

    names: tuple[str, ...] = PATTERNS
    """The patterns that are tried; "references" are tiles of so many reference frames."""
    counts: tuple[int, ...] = (1,)
    """Blocks in a row of the patterns, of every size that is tried; the largest is the first."""
    columns: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Blocks by attention received, `[layers][heads][largest count]`, for the stripes; without
    any they are spread evenly."""

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """All rows are tried."""
        return (("all", num_rows),)

    def in_layers(self, depth: int):
        """All layers are."""
        return ((self, depth),)

    def init(self, grid: TokenGrid) -> Trials:
        """Nothing was tried."""
        blocks = blocks_of(grid, self.block)
        tried = len(candidates(self.counts, self.names))
        shapes = ((), (grid.heads, tried), (grid.heads, blocks.count))
        return Trials(*map(jnp.zeros, shapes))

    def attend(self, q, k, v, state: Trials, call: AttentionCall, among: Among):
        """Attends to everything, and adds up how far every pattern is from it."""
        k, blocks = call.turn(k), blocks_of(call.grid, self.block)
        everything = blocks.everything()
        out, lse = among(q, k, v, everything, return_lse=True)
        held = jnp.asarray(blocks.holds)[None, :, None, None]
        lse = jnp.where(held[:, :, 0, 0][:, None], lse, -jnp.inf)
        mass = block_mass(q, k, lse, blocks.size, blocks.size, kv_lengths=everything.kv_lengths)
        errors = []
        for name, count in candidates(self.counts, self.names):
            listed = pattern(blocks, name, count)
            marked: Any = listed[None, None]
            if name == "stripe" and self.columns:
                mine = jnp.asarray(np.asarray(self.columns))[call.layer][:, :count]
                every = jnp.arange(blocks.count)[None, None]
                striped = (mine[..., None] == every).any(1)[None, :, None]
                marked = jnp.broadcast_to(striped, (1, q.shape[2], blocks.count, blocks.count))
            tried = among(q, k, v, blocks.mask(marked, max(int(listed.sum(-1).max()), 1)))
            errors.append(_power(tried.astype(jnp.float32) - out, held))
        made = Trials(_power(out, held).mean(), jnp.stack(errors, -1), mass.sum((0, 2)))
        return out, Trials(*(a + b for a, b in zip(state, made, strict=True)))

    def best_columns(self, trials: Trials) -> Any:
        """Returns the blocks of keys of most mass, of the trials of all layers."""
        best = np.argsort(-np.asarray(trials.mass), -1, kind="stable")[..., : self.counts[0]]
        return tuple(tuple(map(tuple, layer)) for layer in best.tolist())


def _power(x: Array, held: PyTree) -> Float[Array, " N"]:
    """Returns the mean square of each head, of tokens that are none left out."""
    return jnp.mean(jnp.where(held, x.astype(jnp.float32), 0.0) ** 2, (0, 1, 3))


@functools.lru_cache(maxsize=16)
def _read(text: str) -> PatternTable:
    return PatternTable.read(text)
