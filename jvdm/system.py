"""The system: what a published method composes, as one frozen value.

Networks are static; the numbers of `Sampling` are leaves of a pytree. So another prompt,
seed, scale or matrix of equal shape never compiles again, equal systems share compiled
programs, and two systems that differ in structure never do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Frames, Int, Key, Latents, PyTree, Tokens, no_type_check
from jvdm.attention import Policy
from jvdm.keys import named
from jvdm.models.conditions import ChannelCondition, Conditions, PictureStates, TextStates
from jvdm.models.low_rank import variables
from jvdm.models.step_cache import StepCache
from jvdm.parallel import beside_branches, constrain
from jvdm.samplers import (
    Call,
    ClassifierFree,
    Denoiser,
    Euler,
    Guidance,
    Hook,
    NoiseInitialiser,
    Predict,
    Process,
    ShiftedLevels,
    Solver,
    Stabilised,
    SynchronousMatrix,
    Tiles,
    fused,
    fused_carry,
    guided,
    guided_carry,
    guided_carry_together,
    guided_together,
    make_denoiser,
    rectified_flow,
)
from jvdm.samplers.joint import all_branches
from jvdm.samplers.modalities import each, every
from jvdm.samplers.process import PredictionKind
from jvdm.samplers.rules import LevelsRule, MatrixRule
from jvdm.samplers.tiling import Place, cut
from jvdm.vae.latent_space import LatentSpace
from jvdm.values import to_data


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How latents are made: each part a small frozen rule."""

    levels: LevelsRule | None = ShiftedLevels(16, 3.0)
    """Grid of noise levels."""
    matrix: MatrixRule | None = SynchronousMatrix()
    """Which level each frame has at each row."""
    solver: Solver = dataclasses.field(default=Euler(), metadata={"static": True})
    """How a frame goes from one level to the next."""
    guidance: Guidance | Mapping[str, Guidance] = ClassifierFree(4.0)
    """Which branches are evaluated and how they are joined."""
    policy: Policy | None = dataclasses.field(default=None, metadata={"static": True})
    """Which tokens attend to which; None is the policy that the model was made with."""
    cache: StepCache | None = dataclasses.field(default=None, metadata={"static": True})
    """Which rows reuse what the layers of the network did in earlier ones; None is none."""
    noise: NoiseInitialiser | None = dataclasses.field(default=None, metadata={"static": True})
    """Noise that a run starts from; None is independent noise."""
    hooks: tuple[Hook, ...] | None = ()
    """What is changed from row to row."""
    tiles: Tiles | None = dataclasses.field(default=None, metadata={"static": True})
    """Parts of the latents that the network sees one by one; None shows it the whole window."""
    context: Stabilised | None = None
    """What the network is told of clean frames; None is that they are clean."""


OF_A_ROW = ("process", "prediction", "solver", "guidance", "policy", "cache", "tiles", "context")
"""Rules that the program of a row depends on; hooks are added where rows are those of a clip."""


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class System:
    """Networks and rules, no arrays.

    Parameters are `{"text", "model", "vae"}`, and `"vision"` where there is one; those of the
    autoencoder are a `LatentSpace`, which holds mean and standard deviation of its latents too.

    A system of several modalities has an autoencoder for each, a `FrozenDict` by name; its latents,
    calls, matrices and guidance are dicts by these names, and one network sees them all.

    Attributes:
        text: Text encoder: `read(prompts)` on the host, then `apply` to states and lengths.
        model: Denoiser network.
        vae: Autoencoder; it knows which sizes are legal.
        process: The corruption process that the model was trained on.
        prediction: What the model predicts.
        sampling: How latents are made.
        vision: Encoder of pictures for a model that reads their states: `read(pictures)` on the
            host, then `apply`.
    """

    text: Any = dataclasses.field(metadata={"static": True})
    model: Any = dataclasses.field(metadata={"static": True})
    vae: Any = dataclasses.field(metadata={"static": True})
    process: Process = dataclasses.field(default=rectified_flow(), metadata={"static": True})
    prediction: PredictionKind = dataclasses.field(default="velocity", metadata={"static": True})
    sampling: Sampling = Sampling()
    vision: Any = dataclasses.field(default=None, metadata={"static": True})

    @property
    def networks(self) -> dict[str, Any]:
        """The networks that there are, by name, in the order of their use."""
        parts = {name: getattr(self, name) for name in ("text", "vision", "model", "vae")}
        return {name: part for name, part in parts.items() if part is not None}

    def only(self, *names: str) -> "System":
        """Returns a system with these parts and rules alone, for programs that need no other."""
        parts, rules = (
            {
                field.name: getattr(whole, field.name) if field.name in names else None
                for field in dataclasses.fields(whole)
            }
            for whole in (self, self.sampling)
        )
        return System(**parts | {"sampling": Sampling(**rules)})

    def with_dtype(self, dtype: str) -> "System":
        """Returns the system whose networks compute in `dtype`."""
        changed = {
            name: network.clone(dtype=dtype)
            for name, network in self.networks.items()
            if hasattr(network, "dtype")
        }
        return dataclasses.replace(self, **changed)

    @property
    def network(self) -> Any:
        """The denoiser network, with the policy and the step cache of the sampling."""
        policy, cache, given = self.sampling.policy, self.sampling.cache, {}
        if policy is not None:
            given["policy"] = policy
        if cache is not None:
            given["cache"] = cache.told(self.process)
        return self.model.clone(**given) if given else self.model

    def check_weights(self, digests: Mapping[str, str]) -> None:
        """Refuses weights if attention or step cache were calibrated with others.

        Args:
            digests: The sha256 of their files; none are of no weights, and fit.

        Raises:
            ConfigError: If one of them was.
        """
        for rule in filter(None, (self.network.policy, self.sampling.cache) if digests else ()):
            rule.check_weights(digests)

    def in_rows(self, num_rows: int) -> tuple["System", ...]:
        """Returns the system of each row of a run: attention policies may divide it into phases."""
        policy = self.network.policy
        systems = {}
        for name, _ in policy.phases(num_rows):
            phase = policy.in_phase(name)
            sampling = dataclasses.replace(self.sampling, policy=phase)
            same = phase == policy
            systems[name] = self if same else dataclasses.replace(self, sampling=sampling)
        return tuple(systems[name] for name, count in policy.phases(num_rows) for _ in range(count))

    def init(self, key: Key) -> PyTree:
        """Returns fresh parameters of all networks; traceable."""

        def space(vae: Any) -> LatentSpace:
            channels = getattr(vae, "channels", 3)  # what is coded are pictures, or says its own
            frames = jnp.zeros((1, vae.num_frames(1), *vae.strides[1:], channels))
            params, channels = vae.init(named(key, "vae"), frames)["params"], vae.latent_channels
            return LatentSpace(params, jnp.zeros(channels), jnp.ones(channels))

        vision = {}
        if self.vision is not None:
            pixels = jnp.asarray(self.vision.read(np.zeros((1, 1, 1, 3), np.uint8)))
            vision = {"vision": self.vision.init(named(key, "vision"), pixels)["params"]}
        return {**self.init_denoiser(key), **vision, "vae": each(space, self.vae)}

    def init_denoiser(self, key: Key) -> PyTree:
        """Returns fresh `{"text", "model"}` parameters."""
        ids = jax.tree.map(jnp.asarray, self.text.read(("",))[0])
        text = self.text.init(named(key, "text"), ids)
        side = self.model.patch
        latents: Any = each(
            lambda vae: jnp.zeros((1, 1, side, side, vae.latent_channels)), self.vae
        )
        told = Conditions(text=TextStates(*self.text.apply(text, ids)))
        if "channel" in self.model.ports:
            told = Conditions(told.text, ChannelCondition(latents, latents[..., 0] > 0))
        call = each(lambda latents: Call.at(latents[..., 0, 0, 0]), latents)
        model = self.model.init(named(key, "dit"), latents, call, told, None)
        return {"text": text["params"], "model": model["params"]}

    def told(
        self,
        params: PyTree,
        ids: PyTree,
        channel: ChannelCondition | None = None,
        pictures: PictureStates | None = None,
        actions: Int[Array, "B F"] | None = None,
    ) -> Conditions:
        """Returns the conditions for what `text.read` made of prompts, known latents, pictures.

        Actions are indices of those of the model, of which -1 says nothing; None says none.

        The states that the encoder made of prompts before may stand for what was read of them.
        """
        known = isinstance(ids, TextStates)
        text = ids if known else TextStates(*self.text.apply({"params": params["text"]}, ids))
        return Conditions(text=text, channel=channel, pictures=pictures, actions=actions)

    def see(self, params: PyTree, pixels: Float[Array, "B K h w 3"]) -> Tokens:
        """Returns the states of what `vision.read` made of `K` pictures a video, side by side."""
        flat = pixels.reshape(-1, *pixels.shape[2:])
        states = self.vision.apply({"params": params["vision"]}, flat)
        return states.reshape(len(pixels), -1, states.shape[-1])

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the guidance branches that the network is asked about, of all modalities."""
        guidance: Any = every(self.sampling.guidance, self.vae)
        return all_branches(guidance) if isinstance(guidance, Mapping) else guidance.branches

    @property
    def by_stages(self) -> bool:
        """Whether layers of the network may lie on different devices (`jvdm.models.blockwise`)."""
        return getattr(self.model, "by_stages", False)

    @property
    def branches_at_once(self) -> int:
        """How many branches a call of the network evaluates: all, or one."""
        guidance: Any = every(self.sampling.guidance, self.vae)
        rules = guidance.values() if isinstance(guidance, Mapping) else (guidance,)
        return len(self.branches) if all(r.execution == "batched" for r in rules) else 1

    def predict(self, params: PyTree, told: Conditions) -> Predict:
        """Returns the network as a function of latents, call and carry."""

        def predict(x: Latents, call: Call, carry: PyTree) -> tuple[Latents, PyTree]:
            return self.network.apply(variables(params["model"]), x, call, told, carry)

        return predict

    def conditions(
        self,
        params: PyTree,
        ids: PyTree,
        channel: ChannelCondition | None = None,
        pictures: Tokens | None = None,
        actions: Int[Array, "B F"] | None = None,
    ) -> Conditions:
        """Returns what the model is told in all guidance branches, branch-major.

        Args:
            params: Parameters.
            ids: What `text.read` made of the prompts of all branches, one branch after the other.
            channel: Known latents of the videos; the same in every branch but those
                that go without (`dropped`).
            pictures: What `see` returned, for every video; likewise.
            actions: What is done in every video; the same in every branch.
        """
        told = None
        if pictures is not None:
            keeps = jnp.array(["pictures" not in dropped(name) for name in self.branches])
            states = jnp.concatenate([pictures] * len(keeps))
            told = PictureStates(states, jnp.repeat(keeps, len(pictures)))
        if channel is not None:
            keeps = ["channel" not in dropped(name) for name in self.branches]
            known = jnp.concatenate([channel.known & keep for keep in keeps])
            channel = ChannelCondition(jnp.concatenate([channel.latents] * len(keeps)), known)
        if actions is not None:
            actions = jnp.concatenate([actions] * len(self.branches))
        return self.told(params, ids, channel, told, actions)

    def denoiser(self, params: PyTree, conditions: Conditions) -> Any:
        """Returns the guided network: a `Denoiser`, of modalities a `JointDenoiser`."""
        guidance, tiles = every(self.sampling.guidance, self.vae), self.sampling.tiles
        if "outline" in getattr(self.model, "ports", ()):
            outline = _of_last(conditions.text, len(self.branches))
            conditions = dataclasses.replace(conditions, outline=outline)

        def denoiser_of(names: Sequence[str]) -> Any:
            told = _branches(conditions, self.branches, names)

            def told_so(told: Conditions) -> Denoiser:
                condition = None if told.channel is None else told.channel.latents
                network = beside_branches(self.predict(params, told), len(names), False)
                one = make_denoiser(network, self.process, self.prediction, condition)
                return beside_branches(one, len(names))

            if tiles is None:
                return told_so(told)
            return fused(tiles, lambda place: told_so(_in_tile(told, tiles, place)))

        if isinstance(guidance, Mapping):
            return guided_together(guidance, denoiser_of, self.process)
        denoise, context = guided(guidance, denoiser_of, self.process), self.sampling.context
        return denoise if context is None else context.around(denoise, self.process)

    def seen(self, window: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the latent frames, rows and columns that one call of the network sees."""
        tiles = self.sampling.tiles
        return (window, height, width) if tiles is None else tiles.size(window, height, width)

    def start(
        self, shape: Sequence[int] | Mapping[str, Sequence[int]], window: int | Mapping[str, int]
    ) -> PyTree:
        """Returns the first carry of a denoiser for latents `[B, F, H, W, C]`.

        Args:
            shape: Sizes of the latents of the run, of each modality where there are several.
            window: Latent frames that the network sees at once.

        Raises:
            JvdmError: If the attention policy cannot run on these sizes.
        """
        if isinstance(shape, Mapping):
            batch = next(iter(shape.values()))[0] * len(self.branches)
            positions = each(lambda shape: jnp.arange(shape[1], dtype=jnp.float32), shape)
            seen = each(lambda shape, window: (window, *shape[2:4]), shape, every(window, shape))
            rules: Any = every(self.sampling.guidance, shape)
            return guided_carry_together(rules, self.network.start(seen, positions, batch), shape)
        assert not isinstance(window, Mapping)
        batch, latent_frames, height, width, _ = shape
        tiles, positions = self.sampling.tiles, jnp.arange(latent_frames, dtype=jnp.float32)
        sizes = self.seen(window, height, width)

        def carry_of(names: Sequence[str]) -> PyTree:
            carry = self.network.start(*sizes, positions, batch * len(names))
            return carry if tiles is None else fused_carry(tiles, carry, window, height, width)

        return guided_carry(self.sampling.guidance, carry_of, shape)

    def encode(self, params: PyTree, frames: Frames | Mapping[str, Array]) -> Any:
        """Returns the standardised latents of a video, or of every modality."""

        def encode(vae: Any, space: LatentSpace, frames: Array) -> Latents:
            given = constrain(frames, "batch", "frames", "lines")
            posterior: Any = vae.apply({"params": space.params}, given, method="encode")
            return space.standardize(posterior.mean)

        return each(encode, self.vae, params["vae"], frames)

    def decode(self, params: PyTree, latents: Latents | Mapping[str, Latents]) -> Any:
        """Returns the frames of standardised latents, about 0..1, not clipped; or of each."""

        def decode(vae: Any, space: LatentSpace, latents: Latents) -> Array:
            given = constrain(space.restore(latents), "batch", "frames", "lines")
            frames = vae.apply({"params": space.params}, given, method="decode")
            return constrain(frames, "batch", "frames", "lines")

        return each(decode, self.vae, params["vae"], latents)


def rules_of(system: System) -> dict[str, Any]:
    """Returns process, prediction and sampling of a system as JSON data."""
    names = ("process", "prediction", "sampling")
    return {name: to_data(getattr(system, name), name) for name in names}


def dropped(branch: str) -> tuple[str, ...]:
    """Returns the ports that a guidance branch goes without: `prompt without channel`."""
    return tuple(branch.split(" without ")[1:])


def _in_tile(told: Conditions, tiles: Tiles, place: Place) -> Conditions:
    """Returns what the network is told of a tile: known latents are those in it.

    One of a pair is told one prompt, blended of those of its frames (DiTCtrl's transitions).
    """
    if tiles.pairs and told.text is not None:
        told = dataclasses.replace(told, text=told.text.blended(place.frame, tiles.frames or 0))
    if told.channel is None:
        return told
    size = tiles.size(*told.channel.known.shape[1:])
    channel = jax.tree.map(lambda known: cut(known, place, size), told.channel)
    return dataclasses.replace(told, channel=channel)


def _of_last(told: PyTree, branches: int) -> PyTree:
    """Returns what the last branch, which is told the most, is told, for all branches."""

    def last(leaf: Array) -> Array:
        return jnp.concatenate([jnp.split(leaf, branches)[-1]] * branches)

    return jax.tree.map(last, told)


def _branches(conditions: Conditions, every: Sequence[str], names: Sequence[str]) -> Conditions:
    """Returns the conditions of the branches called `names`, of branch-major ones of all."""
    if tuple(names) == tuple(every):
        return conditions

    def take(leaf: Array) -> Array:
        parts = jnp.split(leaf, len(every))
        return jnp.concatenate([parts[every.index(name)] for name in names])

    return jax.tree.map(take, conditions)
