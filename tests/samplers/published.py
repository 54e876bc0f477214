"""Writes what the authors' own programs of DPM-Solver++ and UniPC make of a small problem.

python -m tests.samplers.published FOLDER

FOLDER holds `dpm_solver_pytorch.py` of LuChengTHU/dpm-solver (stored: 52bc3fb) and `uni_pc.py` of
wl-zhao/UniPC (stored: cf9de85); PyTorch is needed. Their `denoise_to_zero` is our last step.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

STORED = Path(__file__).parent / "published.json"
STEPS, LAST = 9, 0.02  # of time from 1 to LAST, in equal steps
START = (-1.7, -0.3, 0.4, 2.1)
EVEN = {"skip_type": "logSNR"}  # equal steps of lambda, in whose middle they ask only then
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp_2m": ("dpm", {"order": 2}),
    "dpmpp_2m, taylor": ("dpm", {"order": 2, "solver_type": "taylor"}),
    "dpmpp_3m, published": ("dpm", {"order": 3}),
    "dpmpp_2s": ("dpm", {"order": 2, "method": "singlestep_fixed", "steps": 2 * STEPS} | EVEN),
    "unipc1": ("bh2", {"order": 1}),
    "unipc2": ("bh2", {"order": 2}),
    "unipc2, bh1": ("bh1", {"order": 2}),
    "unipc3": ("bh2", {"order": 3}),
    "unipc3, bh1": ("bh1", {"order": 3}),
}


def _module(path: Path) -> Any:
    """Returns a file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(folder: Path) -> None:
    """Runs all cases in float64 and writes the ends of the samples."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_default_dtype(torch.float64)
    dpm, unipc = _module(folder / "dpm_solver_pytorch.py"), _module(folder / "uni_pc.py")
    schedules = {
        module: module.NoiseScheduleVP("linear", dtype=torch.float64) for module in (dpm, unipc)
    }
    found = {}
    for name, (kind, settings) in CASES.items():
        schedule = schedules[dpm if kind == "dpm" else unipc]

        def eps(x, t, schedule=schedule):
            """The noise of the clean estimate `(x + sin x) / (2 + t^2)`."""
            time = t.reshape(-1)[0]
            alpha = torch.exp(schedule.marginal_log_mean_coeff(time))
            clean = (x + torch.sin(x)) / (2 + time**2)
            return (x - alpha * clean) / schedule.marginal_std(time)

        if kind == "dpm":
            solver = dpm.DPM_Solver(eps, schedule, algorithm_type="dpmsolver++")
        else:
            solver = unipc.UniPC(eps, schedule, variant=kind)
        x = torch.tensor(START).reshape(1, -1, 1, 1)
        common = {"t_start": 1.0, "t_end": LAST, "lower_order_final": False}
        made = solver.sample(x, **{"steps": STEPS, **common, "denoise_to_zero": True, **settings})
        found[name] = made.flatten().tolist()
        assert all(math.isfinite(value) for value in found[name])
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
