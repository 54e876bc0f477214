"""Systems beside the model as it is: what each saves and what that costs, at equal seeds.

`jvdm bench systems` measures all on one device. A system that computes less is compared with the
plain model at all steps, and with the plain model at as many steps as the system's cache computed:
what saves less than fewer steps do at equal distance is of no use.
"""

import dataclasses
import html
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, UInt8
from jvdm.errors import ConfigError, JvdmError
from jvdm.evaluation.held_out import SETS, draw
from jvdm.evaluation.judge import make_judge
from jvdm.fidelity import psnr, ssim
from jvdm.models.carry import ran
from jvdm.pipeline import Pipeline, Request, Run, load
from jvdm.products import operations
from jvdm.samplers import Call
from jvdm.stages import measuring

Bytes = UInt8[Array, "B T h w 3"]

PLAIN = "none"
AGAIN, LONG = 2, 10.0  # more runs, for a median of times, after one of fewer seconds
TIMES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Shares of time that the picture names."""
FINER = 4  # times the steps of the run that stands for what all steps lead to
SYSTEMS = ("draft_attention", "window_attention", "radial_attention", "magcache", "teacache")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        systems: Names of systems, or files.
        weights: Model; None is tiny_t2v.
        prompts: Prompts; none are the first of `count` held-out clips of set A, which a reader
            then judges.
        count: Held-out clips.
        size: Frames, height and width of the videos; none is the model's own.
        steps: Denoising steps; None is the model's own number.
    """

    systems: tuple[str, ...] = SYSTEMS
    weights: str | None = None
    prompts: tuple[str, ...] = ()
    count: int = 8
    size: tuple[int, ...] = ()
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.size and len(self.size) != 3:
            what = f"a size of {len(self.size)} numbers"
            raise ConfigError(what, "a video has frames, height and width", "--size 33 128 128")
        if self.count < 1:
            raise ConfigError(
                f"{self.count} held-out clips", "nothing is compared", "use 1 or more"
            )

    @property
    def request(self) -> Request:
        """The settings that all systems share."""
        sizes = dict(zip(("num_frames", "height", "width"), self.size, strict=False))
        return Request(num_inference_steps=self.steps, **sizes)


def rows(asked: Comparison) -> Iterator[dict[str, Any]]:
    """Makes the same videos with every system, after those of the model as it is.

    Yields:
        `system`, `steps`, median `seconds` of denoising and `speedup` over the plain model.
        `density` of attention where it was sparse, the share of calls that `computed` their layers
        where a cache skipped some, and `bound`, the speed-up if all else costs what it did.
        The price, means over videos: `psnr` (dB) and `ssim` to the plain frames, `fine`, the PSNR
        to those of four times the steps, which the plain frames only approach, `reader`, the
        distance of a reader's features from the plain ones over their length, and `count`, the
        share of videos in which every frame has the objects that were told. The plain row has the
        share of `attention` in the products of a step. A system that cannot make these videos, or
        makes those of the plain model by its program, has only the reason, `refused`.
    """
    pipe = load(asked.weights, progress=False)
    judge = None if asked.prompts else make_judge(pipe, None, asked.request)
    texts, held_out = asked.prompts, None
    if judge is not None:
        held_out = draw(SETS["A"], judge.world, asked.count)
        texts = held_out.texts
    request = dataclasses.replace(asked.request, prompt=texts, seed=tuple(range(len(texts))))

    plain, run, first = _made(pipe, request)
    many = dataclasses.replace(request, num_inference_steps=FINER * first["steps"])
    fine, share, counts = _made(pipe, many)[0], attention_share(pipe, run), set()
    true = None if judge is None or held_out is None else judge.measure(plain, held_out)[1]

    def priced(name: str, frames: Bytes, row: Mapping[str, Any]) -> dict[str, Any]:
        row = {"system": name, **row, **price(frames, plain)}
        row["fine"] = price(frames, fine)["psnr"]
        if judge is not None and held_out is not None:
            measures, features = judge.measure(frames, held_out)
            row["count"] = measures["count"].value.mean()
            if features is not None and true is not None:
                row["reader"] = _distance(features, true)
        row["speedup"] = first["seconds"] / row["seconds"]
        return rounded(row)

    yield priced(PLAIN, plain, first) | {"attention": share}
    for given in asked.systems:
        name = Path(given).stem
        try:
            other = load(asked.weights, system=given, progress=False)
            if other.system == pipe.system:
                why = "what it is made for is not in this network"
                raise ConfigError("it changes nothing of this model", why, "give other weights")
            frames, _, row = _made(other, request)
        except JvdmError as error:
            yield {"system": name, "refused": str(error).splitlines()[0]}
            continue
        if "computed" in row:
            counts.add(round(row["computed"] * row["steps"]))
        if "computed" in row or "density" in row:
            work = 1 - share * (1 - row.get("density", 1.0))
            row["bound"] = 1 / (work * row.get("computed", 1.0))
        yield priced(name, frames, row)
    for count in sorted(counts - {0, first["steps"]}, reverse=True):
        fewer = dataclasses.replace(request, num_inference_steps=count)
        frames, _, row = _made(pipe, fewer)
        yield priced(PLAIN, frames, row)


def timed(pipe: Pipeline, request: Request) -> tuple[Run, float]:
    """Makes latents; returns the run after its last row, and its seconds without compilation."""
    with measuring() as stages:
        run = pipe.start(pipe.prepare(request))
        pipe.compile(run)
        end = pipe.advance(run)
    return end, stages.seconds["denoise"]


def _made(pipe: Pipeline, request: Request) -> tuple[Bytes, Run, dict[str, Any]]:
    """Makes the videos some times; returns frames, the run after its last row, and the row."""
    end, first = timed(pipe, request)
    seconds = [first, *(timed(pipe, request)[1] for _ in range(0 if first > LONG else AGAIN))]
    frames = jnp.asarray(pipe.decode(end.state.x))
    did, steps = ran(end.state.carry), end.job.settings.num_inference_steps
    row = {"steps": steps, "seconds": statistics.median(seconds)}
    if did["attention"]:
        row["density"] = did["attention"]["density"]
    if did["cache"]:
        row["computed"] = did["cache"]["computed"] / did["cache"]["calls"]
    return frames, end, row


def attention_share(pipe: Pipeline, run: Run) -> float:
    """Returns the share of products between tokens in those of a call of the network."""
    x, told = run.state.x, run.conditions[0]
    rows = len(pipe.system.branches) * x.shape[0]
    latents = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    call = Call.at(jnp.zeros(latents.shape[:2]))
    network = pipe.system.predict(pipe.params, told)
    weights, kernels = ("dot_general", "conv_general_dilated"), ("pallas_call", "dot_product")
    all_products, between = 0.0, 0.0
    for op in operations(lambda x: network(x, call, None)[0], latents):
        fused = op.name.startswith(kernels)
        if fused or op.name in weights:
            all_products += op.times * op.flops
            between += op.times * op.flops * (fused or op.batched)
    return between / all_products


@jax.jit
def price(frames: Bytes, plain: Bytes) -> dict[str, Array]:
    """Returns PSNR in dB and SSIM to the frames of another system, means over videos."""
    one, two = (x.astype(jnp.float32) / 255.0 for x in (frames, plain))
    return {"psnr": psnr(one, two).mean(), "ssim": ssim(one, two).mean()}


def _distance(features: Array, plain: Array) -> Array:
    """Returns the distance of features from the plain ones over their length, mean over videos."""
    away, length = (jnp.linalg.norm(x, axis=-1) for x in (features - plain, plain))
    return (away / length).mean()


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row whose numbers are plain and have four digits; counts and names stay."""

    def one(value: Any) -> Any:
        return round(float(value), 4) if isinstance(value, jax.Array | float) else value

    return jax.tree.map(one, dict(row))


def told(row: Mapping[str, Any] | None = None) -> str:
    """Returns a row of the table, or its head."""
    columns = {
        "system": "18",
        "steps": "6d",
        "seconds": "9.3f",
        "speedup": "8.2f",
        "bound": "7.2f",
        "density": "9.3f",
        "computed": "9.2f",
        "psnr": "7.2f",
        "ssim": "8.4f",
        "fine": "7.2f",
        "reader": "7.3f",
        "count": "6.2f",
    }
    widths = {name: form.split(".")[0].rstrip("d") for name, form in columns.items()}
    if row is None:
        return "".join(
            f"{name:{'' if name == 'system' else '>'}{widths[name]}}" for name in columns
        )
    if "refused" in row:
        return f"{row['system']:18} refused: {row['refused']}"
    return "".join(
        f"{'-':>{widths[name]}}" if row.get(name) is None else f"{row[name]:{form}}"
        for name, form in columns.items()
    )


def _lowered(places: Sequence[tuple[float, float]], wide: float = 130.0) -> list[float]:
    """Returns how much lower the name beside each place is written, so that none lie on others."""
    lines: dict[int, tuple[float, float]] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[i]
        while near := [b for a, b in lines.values() if abs(a - x) < wide and abs(b - y) < 12]:
            y = max(near) + 13
        lines[i] = (x, y)
    return [lines[i][1] - y for i, (_, y) in enumerate(places)]


def _drawn(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name and the colour of a row in the picture: fewer steps are grey."""
    if "policy" in row:
        asked = "" if row["asked"] == 1 else f" {row['asked']:g}"
        return f"{row['policy']}{asked}", "#1f77b4"
    fewer = row["system"] == PLAIN
    return (f"{row['steps']} steps", "#999") if fewer else (row["system"], "#1f77b4")


def picture(result: Mapping[str, Any]) -> str:
    """Draws PSNR to the plain model against its share of time, in powers of it, as SVG.

    Args:
        result: What `jvdm bench systems` or `jvdm bench model` returns; rows of one shape.
    """
    width, height, left, bottom = 760.0, 420.0, 60.0, 50.0
    made = [row for row in result["rows"][1:] if "refused" not in row]
    names = [_drawn(row) for row in made]
    times = [1 / row["speedup"] for row in made] or [1.0]
    values = [row["psnr"] for row in made] or [20.0]
    least, most = min(1.0, *times) / 1.1, max(1.0, *times) * 1.1
    low, high = min(values) - 2, max(values) + 2

    def place(time: float, value: float) -> tuple[float, float]:
        x = left + math.log(time / least) / math.log(most / least) * (width - left - 140)
        return x, height - bottom - (value - low) / (high - low) * (height - bottom - 30)

    def note(where: tuple[float, float], words: str, colour: str = "#333") -> str:
        x, y = where
        return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{html.escape(words)}</text>'

    drawn = []
    places = [place(time, value) for time, value in zip(times, values, strict=True)] if made else []
    for (name, colour), (x, y), below in zip(names, places, _lowered(places), strict=True):
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        drawn.append(note((x + 7, y + 4 + below), name, colour))
    for time in (time for time in TIMES if least <= time <= most):
        drawn.append(note((place(time, low)[0], height - bottom + 20), f"{time:g}"))
    for value in range(math.ceil(low), math.floor(high) + 1, 5):
        drawn.append(note((20.0, place(1.0, float(value))[1]), f"{value} dB"))
    title = f"PSNR to the plain model against its share of time; {result['device']}"
    drawn.append(note((left, 18.0), title))
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
    return "\n".join([f'{start}font-family="sans-serif" font-size="12">', *drawn, "</svg>", ""])
