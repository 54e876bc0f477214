"""The optimizer: Muon for the matrices of the layers, Adam for everything else."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jvdm.arrays import PyTree


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer; `build` gives the optax transformation.

    Muon orthogonalises the momentum of each weight matrix (Jordan 2024); its
    update is scaled to the root mean square of Adam's, `0.2 sqrt(max(in, out))`
    (Liu et al., arXiv:2502.16982), so that both share one learning rate. Beside
    Muon, Adam has Nesterov momentum, as optax gives it.
    """

    kind: Literal["muon", "adamw"] = "muon"
    """`muon` treats matrices and stacks of matrices; `adamw` treats all alike."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam."""
    matrix_scale: float = 2.0
    """Muon's learning rate over Adam's."""
    warmup_steps: int = 200
    """Steps of linear warm-up; 0 and 1 have none."""
    decay_fraction: float = 0.4
    """Share of the run, at its end, over which the rate falls linearly."""
    final_scale: float = 0.02
    """Learning rate at the end over the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of kernels; gains, biases, tables and embeddings have none."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    def schedule(self, num_steps: int) -> optax.Schedule:
        """Returns step -> learning rate: warm-up, constant, linear decay."""
        decay_steps = max(1, round(self.decay_fraction * num_steps))
        peak, last = self.learning_rate, self.learning_rate * self.final_scale
        warmup = max(1, min(self.warmup_steps, num_steps - decay_steps))
        return optax.join_schedules(
            [
                optax.linear_schedule(peak / warmup, peak, warmup - 1),
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, last, decay_steps),
            ],
            [warmup, max(warmup, num_steps - decay_steps)],
        )

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Returns clipping, the chosen optimizer and decay, for `num_steps` steps."""
        rate: Any = self.schedule(num_steps)
        if self.kind == "adamw":
            update = optax.adam(rate, b2=0.99)
        else:
            update = muon(
                learning_rate=lambda step: self.matrix_scale * rate(step),
                adam_learning_rate=rate,
                adam_b2=0.99,
                muon_weight_dimension_numbers=matrix_axes,
                consistent_rms=0.2,
            )
        # By itself: optax's Muon has a mask for its matrices alone, none for what it gives Adam.
        decay = optax.add_decayed_weights(lambda step: -self.weight_decay * rate(step), _kernels)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), update, decay)


def matrix_axes(params: PyTree) -> PyTree:
    """Says for every leaf along which axes it is a matrix; None where it is not.

    Dense kernels are matrices over their last two axes; a leading axis, as
    `nn.scan` makes it, is a stack of layers. Convolutions, embeddings, norms,
    biases and the first and last projections stay with Adam.
    """

    def axes(path, leaf) -> MuonDimensionNumbers | None:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        hidden = names[-1].startswith("kernel") and any(name.startswith("layers") for name in names)
        if not hidden or leaf.ndim not in (2, 3):
            return None
        return MuonDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _kernels(params: PyTree) -> PyTree:
    """Says for every leaf whether it decays: stacked gains have two axes too."""

    def named(path, leaf) -> bool:
        return str(getattr(path[-1], "key", path[-1])).startswith("kernel")

    return jax.tree_util.tree_map_with_path(named, params)
