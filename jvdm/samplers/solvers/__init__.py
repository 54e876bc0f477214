"""Solvers: how a frame gets from one noise level to the next."""

from jvdm.samplers.solvers.ddim import DDIM, DDPM, Consistency
from jvdm.samplers.solvers.dpm import DPMSolverPP2M, DPMSolverPP2S, DPMSolverPP3M
from jvdm.samplers.solvers.edm import EDM
from jvdm.samplers.solvers.euler import Euler, Heun
from jvdm.samplers.solvers.flow_map import FlowMap
from jvdm.samplers.solvers.named import SOLVERS, solver_named
from jvdm.samplers.solvers.solver import (
    Around,
    Context,
    OneEvaluation,
    Solver,
    Stepped,
    Trial,
    TwoEvaluations,
)
from jvdm.samplers.solvers.unipc import UniPC

__all__ = [
    "Around",
    "Consistency",
    "Context",
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "EDM",
    "Euler",
    "FlowMap",
    "Heun",
    "OneEvaluation",
    "SOLVERS",
    "Solver",
    "Stepped",
    "Trial",
    "TwoEvaluations",
    "UniPC",
    "solver_named",
]
