"""Low-rank changes of a published network, trained beside its frozen weights (LoRA).

Hu et al., arXiv:2106.09685. Only the factors are parameters, and only they are in the optimizer's
state, the average and the checkpoints; the weights are on every device once, kernels in the type
that they are used in. `up` begins as zeros, so that step 0 is the published network bit for bit.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Key, Latents, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.conditions import Conditions
from jvdm.models.low_rank import DOWN, UP, Adapted
from jvdm.models.stack import Remat
from jvdm.pipeline.loading import chosen_dtype, manifest_of, ready, system_of
from jvdm.pricing import stored_shapes
from jvdm.recipes import nearest
from jvdm.samplers.denoiser import Call, ask
from jvdm.samplers.loss_weights import Unweighted
from jvdm.samplers.timesteps import AlongLevels, TimestepSampler
from jvdm.system import System
from jvdm.training.flow_matching import regression, some_replaced
from jvdm.training.objective import TrainCall
from jvdm.weights import lora
from jvdm.weights.diffusers import ADAPTED, Published
from jvdm.weights.folder import find
from jvdm.weights.safetensors import flatten, unflatten

FILE = "lora.safetensors"
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""Projections of both attentions and of the feed-forward part, as Diffusers calls them in Wan."""


class Base(NamedTuple):
    """A published folder whose network is changed.

    Attributes:
        folder: The folder.
        manifest: What it holds.
        system: Its networks and rules.
        shapes: Of the parameters of its network.
    """

    folder: Path
    manifest: Published
    system: System
    shapes: PyTree


def base_of(place: str, dtype: str | None) -> Base:
    """Returns what a published folder holds; its arrays are not read.

    Raises:
        WeightsError: If it cannot be read.
        ConfigError: If it is no published folder.
    """
    return _base(find(place).resolve(), chosen_dtype(dtype))


@functools.lru_cache(maxsize=4)
def _base(folder: Path, dtype: str) -> Base:
    """Reads a folder, which is said in full: the same name may be another one elsewhere."""
    manifest = manifest_of(folder)
    if not isinstance(manifest, Published):
        why = "low-rank changes are of published networks"
        raise ConfigError(f"{folder} holds {manifest.family}", why, "give a folder of Diffusers")
    system = system_of(manifest).with_dtype(dtype)
    return Base(folder, manifest, system, stored_shapes(system)[ADAPTED])


@dataclasses.dataclass(frozen=True)
class LowRankMatching:
    """Flow matching of the low-rank changes of a published text-to-video network.

    A batch holds standardised `latents [B, F, H, W, C]`, the states `text` of their prompts and
    those of the empty prompt, `nothing`, as `EncodedClips` makes them.
    """

    base: str = "Wan2.1-T2V-1.3B-Diffusers"
    """Folder of Diffusers whose network is changed; its encoders make latents and states."""
    rank: int = 32
    """Rank of every change."""
    alpha: float = 32.0
    """Changes are multiplied by alpha / rank."""
    targets: tuple[str, ...] = LAYERS
    """Ends of the published names of the products that are changed: to_q, attn1.to_q, ..."""
    rows: TimestepSampler = AlongLevels()
    """Where in a sampling run each clip is trained; by itself evenly along the folder's levels."""
    drop_text: float = 0.1
    """Share of clips whose prompt is replaced by the empty one, for guidance."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation and of frozen kernels; None is float32 on a CPU, else bfloat16."""
    remat: Remat = "all"
    """What of the network the backward pass computes again."""

    @property
    def passes(self) -> float:
        """What a step costs, in forward passes: no gradient of a frozen kernel is made."""
        return 2.0

    @property
    def loaded(self) -> Base:
        """The base without its arrays.

        Raises:
            ConfigError: If it is of a network that is told pictures beside the noisy latents.
        """
        base = base_of(self.base, self.dtype)
        if more := set(base.system.model.ports) - {"text"}:
            what = f"{self.base} is told more than a prompt: {', '.join(sorted(more))}"
            raise ConfigError(what, "text-to-video networks are trained", "use such a folder")
        return base

    def placed(self) -> "LowRankMatching":
        """Returns the objective whose base is said in full, for commands run elsewhere."""
        return dataclasses.replace(self, base=str(find(self.base).absolute()))

    def init(self, key: Key) -> PyTree:
        """Returns fresh factors: `down` uniform as in PEFT, `up` zero.

        Raises:
            ConfigError: If the rank is below 1, or a target matches nothing.
        """
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            what = f"rank is {self.rank} and alpha {self.alpha:g}"
            raise ConfigError(what, "both are above 0", "use --objective.rank 16")
        made, shapes = {}, flatten(self.loaded.shapes)
        for path in self._paths():
            *layers, width, size = shapes[path].shape
            reach = width**-0.5
            draw = jax.random.uniform(named(key, path), (*layers, width, self.rank))
            made[path + DOWN] = reach * (2.0 * draw - 1.0)
            made[path + UP] = jnp.zeros((*layers, self.rank, size))
        return unflatten(made)

    def _paths(self) -> list[str]:
        """Returns the kernels that are changed."""
        base, found, known = self.loaded, {}, set()
        for part, network in base.manifest.networks(base.shapes).items():
            for rule in network.table.rules:
                path, module = f"{part}/{rule.ours}".lstrip("/"), rule.theirs.rpartition(".")[0]
                if not path.rpartition("/")[2].startswith("kernel"):
                    continue
                known.add(module)
                for target in self.targets:
                    if f".{module}".endswith(f".{target}"):
                        found.setdefault(target, []).append(path)
        lost = [target for target in self.targets if target not in found]
        if lost or not found:
            ends = {".".join(name.split(".")[-count:]) for name in known for count in (1, 2, 3)}
            what = f"targets {', '.join(lost) or 'are none, and'} match nothing of {self.base}"
            why = f"its products are {', '.join(sorted(known))}"
            raise ConfigError(what, why, nearest(lost[0], ends) if lost else "name some")
        return sorted({path for paths in found.values() for path in paths})

    def frozen(self) -> PyTree:
        """Reads the weights of the network."""
        base = self.loaded
        _, tree = base.manifest.parameters(base.folder, ADAPTED, base.shapes)
        return {ADAPTED: ready(tree, base.system.model)}

    def predict(
        self, params: PyTree, frozen: PyTree, x: Latents, t: NoiseLevels, told: Conditions
    ) -> Latents:
        """Returns what the changed network predicts of `x` at levels `t`."""
        base = self.loaded.system
        system = dataclasses.replace(base, model=base.model.clone(remat=self.remat))
        scale = jnp.array([self.alpha / self.rank], jnp.float32)
        adapted = {ADAPTED: Adapted(frozen[ADAPTED], (params,), ({},), scale)}
        return ask(system.predict(adapted, told), system.process, x, Call.at(t), None)[0]

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean of squared errors over the frames that are trained."""
        system, rows = self.loaded.system, self.rows
        if isinstance(rows, AlongLevels) and not rows.levels:
            levels: Any = system.sampling.levels
            with jax.ensure_compile_time_eval():  # they are numbers of the base
                rows = AlongLevels(tuple(np.asarray(levels()).tolist()))
        text = some_replaced(
            batch["text"], batch["nothing"], self.drop_text, named(call.key, "drop")
        )

        def predict(x: Latents, t: NoiseLevels) -> Latents:
            return self.predict(params, call.frozen, x, t, Conditions(text=text))

        return regression(system, predict, batch["latents"], rows, Unweighted(), call.key), {}

    def write(self, folder: Path, params: PyTree) -> Path:
        """Writes the changes as Diffusers reads them, in float32."""
        base, files = self.loaded, {}
        for part, network in base.manifest.networks(base.shapes).items():
            own: Mapping[str, Any] = params[part] if part else params
            scale = self.alpha / self.rank
            found = lora.changes_of(own, network.table, network.expected, scale)
            files[f"{network.folder}."] = found
        lora.write(folder / FILE, files)
        return folder / FILE
