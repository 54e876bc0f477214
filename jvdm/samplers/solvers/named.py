"""Solvers by the names that the command line knows."""

import difflib

from jvdm.errors import ConfigError
from jvdm.samplers.solvers.ddim import DDIM, DDPM, Consistency
from jvdm.samplers.solvers.dpm import DPMSolverPP2M, DPMSolverPP2S, DPMSolverPP3M
from jvdm.samplers.solvers.edm import EDM
from jvdm.samplers.solvers.euler import Euler, Heun
from jvdm.samplers.solvers.flow_map import FlowMap
from jvdm.samplers.solvers.solver import Solver
from jvdm.samplers.solvers.unipc import UniPC

SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "heun": Heun(),
    "ddim": DDIM(),
    "ddpm": DDPM(),
    "lcm": Consistency(),
    "dpmpp_2m": DPMSolverPP2M(),
    "dpmpp_2m_sde": DPMSolverPP2M(eta=1.0),
    "dpmpp_2s": DPMSolverPP2S(),
    "dpmpp_3m": DPMSolverPP3M(),
    "unipc1": UniPC(1),
    "unipc2": UniPC(2),
    "unipc3": UniPC(3),
    "edm_euler": EDM(corrector=False),
    "edm_heun": EDM(),
    "flow_map": FlowMap(),
}
"""Every solver with its usual settings."""


def solver_named(name: str) -> Solver:
    """Returns the solver called `name`.

    Raises:
        ConfigError: If there is none; it names the nearest and lists all.
    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1)
        raise ConfigError(
            f"a solver called {name!r} was asked for",
            f"did you mean {near[0]!r}?" if near else "there is none of that name",
            "use one of " + ", ".join(SOLVERS),
        )
    return SOLVERS[name]
