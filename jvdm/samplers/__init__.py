"""Noise levels: processes, timestep matrices, solvers, guidance and the one loop."""

from jvdm.samplers.denoiser import Denoised, Denoiser, make_denoiser
from jvdm.samplers.guidance import classifier_free, linear, stack_branches
from jvdm.samplers.levels import linspace_levels, shift_levels
from jvdm.samplers.matrices import (
    TimestepMatrix,
    cost,
    freeze,
    from_index,
    lag_matrix,
    pad_rows,
    picture,
    synchronous,
    times,
    truncate,
    validate,
    windowed,
)
from jvdm.samplers.noise import Address, consecutive, initial_noise
from jvdm.samplers.process import (
    Process,
    corrupt,
    rectified_flow,
    velocity_target,
    vp_cosine,
)
from jvdm.samplers.sampler import State, advance, raise_non_finite, run_rows, sample, start
from jvdm.samplers.solvers import Euler, Heun, Solver
from jvdm.samplers.timesteps import (
    CleanPrefix,
    Independent,
    LagRows,
    Mixture,
    Synchronous,
    TimestepSampler,
    TrainTimes,
)

__all__ = [
    "Address",
    "CleanPrefix",
    "Denoised",
    "Denoiser",
    "Euler",
    "Heun",
    "Independent",
    "LagRows",
    "Mixture",
    "Process",
    "Solver",
    "State",
    "Synchronous",
    "TimestepMatrix",
    "TimestepSampler",
    "TrainTimes",
    "advance",
    "classifier_free",
    "consecutive",
    "corrupt",
    "cost",
    "freeze",
    "from_index",
    "initial_noise",
    "lag_matrix",
    "linear",
    "linspace_levels",
    "make_denoiser",
    "pad_rows",
    "picture",
    "raise_non_finite",
    "rectified_flow",
    "run_rows",
    "sample",
    "shift_levels",
    "stack_branches",
    "start",
    "synchronous",
    "times",
    "truncate",
    "validate",
    "velocity_target",
    "vp_cosine",
    "windowed",
]
