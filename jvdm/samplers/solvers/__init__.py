"""Solvers: how a frame gets from one noise level to the next."""

from jvdm.samplers.solvers.ddim import DDIM, DDPM, Consistency
from jvdm.samplers.solvers.dpm import DPMSolverPP2M, DPMSolverPP2S, DPMSolverPP3M
from jvdm.samplers.solvers.edm import EDM
from jvdm.samplers.solvers.euler import Euler, Heun
from jvdm.samplers.solvers.named import SOLVERS, solver_named
from jvdm.samplers.solvers.solver import Context, OneEvaluation, Solver, Stepped, velocity
from jvdm.samplers.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "SOLVERS",
    "Consistency",
    "Context",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "Euler",
    "Heun",
    "OneEvaluation",
    "Solver",
    "Stepped",
    "UniPC",
    "solver_named",
    "velocity",
]
