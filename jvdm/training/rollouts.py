"""What a student makes by itself, as its system is sampled, with a gradient through few calls.

A run is made twice. The first time all rows are made and nothing is differentiated. Then one call
of every frame, the one at its exit, is made again from the same latents behind the same finished
frames, and the gradient goes through it alone: to the student's parameters, and not through what a
cache holds. Where all frames in work have one level (whole clips, one chunk after the other) the
run leaves its chains at the exit, so that what follows sees what the call says (Self-Forcing,
arXiv:2506.08009, algorithm 1; whole clips: DMD2's backward simulation, arXiv:2405.14867). Where
they have several (a rolling window) the run goes on to its end, and the exits are the calls of
every so-manieth row, whose frames tile the clip (Rolling Forcing, arXiv:2509.25161).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Int, Key, Latents, PyTree
from jvdm.attention import Policy
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.models.conditions import Conditions
from jvdm.samplers.cached import check_cache
from jvdm.samplers.denoiser import Call, Denoised, Denoiser, in_window
from jvdm.samplers.levels import linspace_levels
from jvdm.samplers.matrices import TimestepMatrix, from_index, pad_rows
from jvdm.samplers.process import expand
from jvdm.samplers.rules import MatrixRule
from jvdm.samplers.sampler import sample
from jvdm.samplers.solvers.solver import Context, OneEvaluation, Solver, Stepped
from jvdm.system import System


class Run(NamedTuple):
    """The rows of a run, and those of the calls that have a gradient; arrays of the host.

    Attributes:
        whole: All rows.
        exits: i32[S, F], the step of each frame whose call has a gradient, for each choice.
        calls: The rows of these calls, with a leading axis `S` for the choices: every frame goes
            in one step from the level of its exit to clean.
        early: Whether chains are left at their exits.
    """

    whole: TimestepMatrix
    exits: Int[np.ndarray, "S F"]
    calls: TimestepMatrix
    early: bool


class Rollout(NamedTuple):
    """A run of a student.

    Attributes:
        made: f32[B, F, H, W, C], where the calls at the exits lead to; with the gradient.
        still: f32[B, F, H, W, C], the same without; of a run that is left early, what it left, so
            that no call is made again for it.
        clean: f32[B, F, H, W, C], what the run left.
    """

    made: Latents
    still: Latents
    clean: Latents


@functools.lru_cache(maxsize=8)
def run_of(rule: MatrixRule, policy: Policy, steps: int, latent_frames: int) -> Run:
    """Returns the rows that a system makes a clip in.

    Args:
        rule: Its matrix.
        policy: Its attention, which may keep keys and values.
        steps: Steps of its levels.
        latent_frames: Latent frames of a clip.

    Raises:
        ConfigError: If frames do not make all steps in successive rows, a row reads frames that
            the cache of the policy does not hold, or what it writes is not known afterwards.
    """
    with jax.ensure_compile_time_eval():
        whole = rule(linspace_levels(steps), latent_frames)
        check_cache(whole, policy.slots, policy.banks)
        index = np.asarray(whole.index)
        moves = index[1:] != index[:-1]
        rows = np.flatnonzero(moves.any(1))
        ends = [np.flatnonzero(moves[rows, frame]) for frame in range(latent_frames)]
        along = all((np.diff(each) == 1).all() and len(each) == steps for each in ends)
        held = np.asarray(whole.write).any() or whole.window == latent_frames
        if not (along and held):
            what = f"a rollout of {type(rule).__name__}"
            why = "frames make all steps from noise to clean in successive rows"
            raise ConfigError(what, why, "use a synchronous, an autoregressive or a lag matrix")
        starts = np.array([each[0] for each in ends])
        exits = (np.arange(steps)[:, None] - starts[None]) % steps
        calls = [_calls(whole, rows[starts + chosen]) for chosen in exits]
        early = bool((exits == exits[:, :1]).all())
        most = max(one.num_rows for one in calls)
        padded = [pad_rows(one, most) for one in calls]
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    return Run(jax.tree.map(np.asarray, whole), exits, together, early)


def _calls(whole: TimestepMatrix, exits: Int[np.ndarray, " F"]) -> TimestepMatrix:
    """Returns the rows in which every frame is shown at its exit, and those that write frames."""
    write = np.asarray(whole.write)
    rows = np.union1d(exits, np.flatnonzero(write.any(1)))
    index = (exits[None] < np.append(rows, np.inf)[:, None]).astype(int)
    return dataclasses.replace(
        from_index(linspace_levels(1), index),
        start=whole.start[rows],
        write=whole.write[rows],
        window=whole.window,
        lookback=whole.lookback,
    )


@dataclasses.dataclass(frozen=True)
class _Noted(Solver):
    """Another solver that notes what each frame was shown at its exit."""

    solver: Solver
    exits: Int[Array, " F"]

    @property
    def evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.evaluations

    def init(self, x: Array) -> PyTree:
        return self.solver.init(x), x

    def step(self, x: Array, state: PyTree, context: Context) -> Stepped:
        inner, noted = state
        now = context.updates == in_window(self.exits[None], context.row, x.shape[1])
        stepped = self.solver.step(x, inner, context)
        return stepped._replace(state=(stepped.state, jnp.where(expand(now, x), x, noted)))


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Lets a student make clips by the levels, matrix and solver of its sampling.

    Raises:
        ConfigError: If its runs have a rule that one call for a step cannot follow.
    """

    system: System

    def __post_init__(self) -> None:
        """Refuses rules of sampling that would be left out in silence."""
        sampling = self.system.sampling
        unmade = {
            "sampling.hooks": bool(sampling.hooks),
            "sampling.noise": sampling.noise is not None,
            "sampling.cache": sampling.cache is not None,
            "sampling.guidance of several branches": len(self.system.branches) > 1,
            "sampling.solver of several evaluations": not isinstance(sampling.solver, OneEvaluation)
            or sampling.solver.init(jnp.zeros((1, 1, 1))) is not None,
        }
        if wrong := [name for name, is_set in unmade.items() if is_set]:
            what = f"a student whose runs have {', '.join(wrong)}"
            why = "what it is trained on is one call for a step, of the prompt alone"
            raise ConfigError(what, why, "leave it out, and use --sampling.solver lcm")

    @property
    def steps(self) -> int:
        """How many calls there are of a frame."""
        return len(self.system.sampling.levels()) - 1

    def make(
        self,
        params: PyTree,
        told: Conditions,
        noise: Latents,
        chosen: Int[Array, ""],
        key: Key,
        past: Latents | None = None,
    ) -> Rollout:
        """Makes clips from noise.

        Args:
            params: `{"text", "model"}`, of which the gradient is.
            told: What the student is told.
            noise: f32[B, F, H, W, C], what runs begin with.
            chosen: Which call of each frame has the gradient, below `steps`.
            key: Stream of what the solver draws.
            past: f32[B, F, H, W, C], what is shown for finished frames instead of what was made:
                teacher forcing; None shows what was made.

        Raises:
            ConfigError: As `run_of` does.
        """
        system, sampling, frames = self.system, self.system.sampling, noise.shape[1]
        levels = jnp.asarray(sampling.levels(), jnp.float32)
        run = run_of(sampling.matrix, system.network.policy, self.steps, frames)
        exits = jnp.asarray(run.exits)[chosen]
        left = jnp.where(jnp.arange(len(levels)) <= chosen, levels, 0.0) if run.early else levels
        whole = dataclasses.replace(jax.tree.map(jnp.asarray, run.whole), levels=left)
        begin = functools.partial(system.start, noise.shape, whole.window)
        rules = (_Noted(sampling.solver, exits), system.process, whole, noise, key)
        denoise = system.denoiser(jax.lax.stop_gradient(params), told)
        state = sample(_Shown(past, None, levels[0]).to(denoise), *rules, carry=begin())
        clean, noted = jax.lax.stop_gradient((state.x, state.solver[1]))
        calls = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], run.calls)
        ends = jnp.stack([levels[exits], jnp.zeros(frames)])
        calls = dataclasses.replace(calls, levels=ends)
        shown = _Shown(clean if past is None else past, noise, levels[0])
        again = (sampling.solver, system.process, calls, noted, named(key, "exits"))
        live = sample(shown.to(system.denoiser(params, told)), *again, carry=begin())
        return Rollout(live.x, clean if run.early else jax.lax.stop_gradient(live.x), clean)


class _Shown(NamedTuple):
    """What a network is shown of frames that stand: finished ones, and noise that waits.

    None shows them as they are.
    """

    clean: Latents | None
    noise: Latents | None
    top: Array

    def to(self, denoise: Denoiser) -> Denoiser:
        """Returns the network that is shown this, and through whose memory no gradient goes."""

        def shown(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
            row, window = call.row, x.shape[1]
            stands = jnp.ones(window, bool) if row.moving is None else ~row.moving
            waits, done = stands[None] & (call.t > 0), stands[None] & (call.t == 0)
            if self.noise is not None:
                x = jnp.where(expand(waits, x), in_window(self.noise, row, window), x)
                t, t_next = (jnp.where(waits, self.top, of) for of in (call.t, call.t_next))
                call = Call(t, t_next, row)
            if self.clean is not None:
                x = jnp.where(expand(done, x), in_window(self.clean, row, window), x)
            return denoise(x, call, jax.lax.stop_gradient(carry))

        return shown
