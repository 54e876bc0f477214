"""`jvdm bench`: what takes how long on this device, beside what others need.

Sparse attention beside dense attention, alone or in a network; published families beside
Diffusers, where that is installed; and several devices beside one. A network of `model` has
random weights, but attention with structure, so that policies which look at it have something to
find. `tune` chooses the tile sizes of the kernels for a device.

Where there is no command line (jax and flax suffice):

    python -c "from jvdm import bench; bench.main('model', shape=('wan-1.3b-720p',))"
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import comparison, families, pace, scaling
from jvdm.arrays import Array, Key, Latents, PyTree
from jvdm.attention import POLICIES, Policy, Sparse, summary
from jvdm.attention.tally import Tally
from jvdm.choices import PARTS
from jvdm.errors import ConfigError
from jvdm.fidelity import psnr, ssim
from jvdm.files import probe_writable, write_text
from jvdm.models import stand_in
from jvdm.models.carry import Carry, ran
from jvdm.models.step_cache import StepCache
from jvdm.recipes import nearest
from jvdm.samplers import Call, rectified_flow
from jvdm.stages import measuring, stage
from pallas_kernels.attention import bench, tables, tune
from pallas_kernels.attention.bench import BLOCKS, DENSITIES
from pallas_kernels.attention.pallas_tpu import schedule
from pallas_kernels.attention.peers import PEERS, missing
from pallas_kernels.attention.plot import speedups
from pallas_kernels.attention.shapes import SHAPES, Shape

ROWS = 50
"""Rows of a run whose phases are timed."""
REPEATS = 3
"""Loops of which the median time is taken: a row at published sizes takes a second."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Times attention, a network with it, or published families, on this device or on all."""

    what: Literal["attention", "model", "families", "streams", "parallel", "systems", "tune"] = (
        "attention"
    )
    """attention: kernels on random lists; model: forward passes of a network; families: published
    networks of random weights, beside those of Diffusers; streams: chunks of endless videos at
    published sizes; parallel: on one device and on all; systems: videos by published systems and
    by the plain model, with their price in fidelity; tune: tile sizes of the kernels, the cheapest
    of which go into a table."""
    shape: tuple[str, ...] = ()
    """Shapes by name; the smallest on a CPU, else that of Wan 1.3B at 480p, if left out; of
    families that and LTX-Video 2B, of streams all."""
    chunks: int = 100
    """Of streams, the chunks that are timed after the first ones."""
    peers: bool = True
    """Whether Diffusers is timed beside families in the same run, where it is installed."""
    densities: tuple[float, ...] = ()
    """Shares of attention that are computed; .5 to .02 for attention, .25 for a model."""
    blocks: tuple[int, ...] = BLOCKS
    """Tokens of a block; a model chooses by its grid."""
    policies: tuple[str, ...] = ("draft", "random")
    """Sparse policies of a model, by name."""
    caches: tuple[str, ...] = ()
    """Of a model, step caches by name: runs of 50 rows are timed, with dense attention and with
    every policy that the cache goes with."""
    dense_layers: int = 1
    """First layers of a model that are dense, for every policy."""
    seed: int = 0
    """Seed of the weights of a model and of its video."""
    chips: tuple[str, ...] = ()
    """Of tune, TPUs by name, v5e or v6e: the compiler's schedule for them is read, for which the
    wheel libtpu suffices; if left out this device is timed, an H100 or H200."""
    quick: bool = False
    """Of tune on a GPU, only square blocks and heads of 128."""
    table: Path | None = None
    """Of tune, the table to write, or to change if it is there; tiles.json in the folder of the
    results if left out. Kernels use it where PALLAS_KERNELS_TILES names it."""
    systems: tuple[str, ...] = comparison.SYSTEMS
    """Systems that are compared, by name or file."""
    weights: str | None = None
    """Of systems, a weights folder or the name of shipped weights; default tiny_t2v."""
    prompts: tuple[str, ...] = ()
    """Of systems, what is made; held-out clips of one object if left out, which a reader judges."""
    clips: int = 8
    """Of systems without prompts, the number of held-out clips."""
    size: tuple[int, ...] = ()
    """Of systems, frames, height and width of the videos; those of the model if left out."""
    steps: int | None = None
    """Of systems, denoising steps; default that of the model."""
    output: Path = Path("out/bench")
    """Folder for the results as JSON, and as a picture."""


def run(options: BenchOptions) -> dict[str, Any]:
    """Measures every shape.

    Returns:
        `settings`, `device`, `jax`, `outputs`, why a peer was not measured (`missing`) and `rows`:
        those of `pallas_kernels.attention.bench`, of `rows_of_model`, of `jvdm.families.rows`, of
        `jvdm.pace.rows` or of `jvdm.scaling.rows`, with `shape`, its name; or of
        `pallas_kernels.attention.tune` or `jvdm.comparison.rows`.

    Raises:
        ConfigError: If there is no such shape or policy, it cannot run, or there is one device;
            if this device has no tile sizes to choose, or a table cannot be read or written.
    """
    if options.what == "tune":
        return _tuned(options)
    if options.what == "systems":
        return _compared(options)
    if options.chips or options.table or options.quick:
        what = f"--chips, --table and --quick were given to jvdm bench {options.what}"
        raise ConfigError(what, "they are of the choice of tile sizes", "use jvdm bench tune")
    names = _names(options)
    probe_writable(options.output)
    shapes, absent = {name: SHAPES[name] for name in names if name in SHAPES}, {}
    if options.what == "families":
        absent = {"diffusers": families.missing() if options.peers else "not asked for"}
        rows = families.rows(names, peers=not absent["diffusers"])
        total = len(names) * len(families.PARTS)
    elif options.what == "streams":
        if options.chunks < 1:
            raise ConfigError(f"{options.chunks} chunks", "one or more are timed", "use 100")
        rows, total = pace.rows(names, options.chunks), len(names)
    elif options.what == "parallel":
        if jax.device_count() == 1:
            why = "several are timed beside one"
            raise ConfigError("there is one device", why, "run it where there are two or more")
        rows, total = scaling.rows(names), len(names) * len(scaling.PARTS)
    elif options.what == "model":
        variants = {("dense", 1.0): POLICIES["dense"], **_variants(options, shapes.values())}
        cached = _cached(options, shapes.values(), variants)
        total = len(shapes) * (len(variants) + len(cached))
        rows = rows_of_model(shapes, {**variants, **cached}, options.seed)
    else:
        densities = options.densities or DENSITIES
        rows, absent = bench.rows(shapes, options.blocks, densities), {n: missing(n) for n in PEERS}
        total = len(shapes) * len(options.blocks) * (2 + sum(x < 1 for x in densities))
    return _collected(options, rows, total, absent)


def _compared(options: BenchOptions) -> dict[str, Any]:
    """Compares systems."""
    probe_writable(options.output)
    names = ("systems", "weights", "prompts", "size", "steps")
    given = {name: getattr(options, name) for name in names}
    asked = comparison.Comparison(**given, count=options.clips)
    return _collected(options, comparison.rows(asked), 1 + len(options.systems), {})


def _collected(
    options: BenchOptions, rows: Iterable[dict[str, Any]], total: int, absent: Mapping[str, str]
) -> dict[str, Any]:
    """Measures rows, and writes what there is after each: a long run may be stopped.

    Pictures are drawn when all are there.
    """
    path = options.output / f"{options.what}.json"
    result: dict[str, Any] = {
        "settings": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "missing": {name: why for name, why in absent.items() if why},
        "rows": [],
        "outputs": [str(path)],
    }
    with measuring(True), stage(f"bench {options.what}", total=total, unit="row") as bar:
        for row in rows:
            result["rows"].append(row)
            write_text(path, json.dumps(result, indent=1) + "\n")
            bar.update()
    for name, picture in _pictures(result).items():
        write_text(options.output / name, picture)
        result["outputs"].append(str(options.output / name))
    return result


def _pictures(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the pictures of a result, SVG, by the names of their files."""
    what, rows = result["settings"]["what"], result["rows"]
    if what == "attention":
        return {"attention.svg": speedups(result)}
    if what == "systems":
        return {"systems.svg": comparison.picture(result)}
    if what != "model":
        return {}
    shapes = dict.fromkeys(row["shape"] for row in rows)
    parts = {name: [row for row in rows if row["shape"] == name] for name in shapes}
    return {
        f"{name}.svg": comparison.picture({**result, "rows": part}) for name, part in parts.items()
    }


def _tuned(options: BenchOptions) -> dict[str, Any]:
    """Chooses tile sizes, and writes them where the user says; the package stays as it is."""
    for chip in options.chips:
        if chip not in schedule.TOPOLOGIES:
            fix = f"chips are {', '.join(schedule.TOPOLOGIES)}"
            raise ConfigError(f"there is no chip {chip!r}", nearest(chip, schedule.TOPOLOGIES), fix)
    if refused := tune.refusal(options.chips):
        fix = "run it on an H100 or H200, or name TPUs: --chips v5e v6e"
        fix = "pip install libtpu" if options.chips else fix
        raise ConfigError("there are no tile sizes to choose here", refused, fix)
    table = options.table or options.output / "tiles.json"
    if table.resolve() == tables.PACKAGED.resolve():
        fix = f"write another file and name it in {tables.VARIABLE}"
        raise ConfigError(f"--table is {table}", "it is the package's own", fix)
    probe_writable(options.output)
    probe_writable(table.parent)
    command = " ".join(["jvdm bench tune", *(["--chips"] if options.chips else []), *options.chips])
    command += " --quick" if options.quick else ""
    try:
        if table.exists():
            tables.tables(table)
        rows = tune.rows(options.chips, table, command, quick=options.quick)
        result = _collected(options, rows, 0, {})
    except ValueError as error:
        raise ConfigError("no table was written", str(error)) from error
    return result | {"outputs": [*result["outputs"], str(table)]}


def text(result: Mapping[str, Any]) -> str:
    """Returns the table, and where the files are."""
    lines = [f"{result['devices']} of {result['device']}, jax {result['jax']}"]
    lines += [f"without {name}: {why}" for name, why in result["missing"].items()]
    if result["settings"]["what"] == "attention":
        lines += [bench.told(), *map(bench.told, result["rows"])]
    elif result["settings"]["what"] == "families":
        lines += [families.told(), *map(families.told, result["rows"])]
    elif result["settings"]["what"] == "streams":
        lines += [pace.told(), *map(pace.told, result["rows"])]
    elif result["settings"]["what"] == "tune":
        lines += map(tune.told, result["rows"])
        name = Path(result["outputs"][-1]).resolve()
        used = tables.path().resolve() == name
        told = "which kernels use from now on" if used else "which kernels use after"
        lines += [f"the cheapest are in the table, {told}", f"export {tables.VARIABLE}={name}"]
    elif result["settings"]["what"] == "systems":
        lines += [comparison.told(), *map(comparison.told, result["rows"])]
    elif result["settings"]["what"] == "parallel":
        lines += [scaling.told(), *map(scaling.told, result["rows"])]
    else:
        head = "shape          policy             asked  density  recall  seconds  speedup"
        head += "  of a run  plan, %   error    PSNR    SSIM"
        lines += [head, *map(_told, result["rows"])]
    return "\n".join([*lines, "", *result["outputs"]])


def _told(row: Mapping[str, Any]) -> str:
    kept = "     -" if row.get("recall") is None else f"{row['recall']:6.3f}"
    plan = "      -" if row.get("plan") is None else f"{100 * row['plan']:7.1f}"
    return (
        f"{row['shape']:14} {row['policy']:18} {row['asked']:5.2f}  "
        f"{row.get('density', 1.0):7.3f}  {kept}  {row['seconds']:7.3f}  {row['speedup']:7.2f}  "
        f"{row['run_speedup']:8.2f}  {plan}  "
        f"{row['error']:6.4f}  {row['psnr']:6.2f}  {row['ssim']:6.4f}"
    )


def rows_of_model(
    shapes: Mapping[str, Shape], variants: Mapping[tuple[str, float], Any], seed: int
) -> Iterator[dict[str, Any]]:
    """Runs a network of every shape with every variant, of which the first is dense attention.

    Args:
        shapes: By name.
        variants: By name and density: policies, or pairs of a policy and a step cache.
        seed: Of weights and video.

    Yields:
        Shape, policy, density asked for; seconds of a forward pass in the last phase of a run
        (median), and how many times faster it is than a dense one (`speedup`); seconds of each
        phase (`phases`) and how many times faster a run of `ROWS` rows is, in which a policy may
        be dense at first and search now and then (`run_speedup`); what choosing and listing blocks
        costs in the last phase, as a share of the time of attention among them (`plan`); the price
        of that phase (`price`), and what its tallies say (`jvdm.attention.summary`).
        With a cache all rows are run: `seconds` is their mean, `computed` the share of them that
        ran all layers, and the price that of the worse of the two rows in the middle.
    """
    for shape_name, shape in shapes.items():
        keys = jax.random.split(jax.random.key(seed), 3)
        params = stand_in.parameters(keys[0], shape)
        states = jax.random.normal(keys[1], (1, *stand_in.TEXT))
        video = functools.partial(stand_in.moving_regions, keys[2], shape)
        videos = [video(level) for level in (stand_in.BEFORE, stand_in.LEVEL)]
        dense, dense_s = None, 0.0
        for (name, density), variant in variants.items():
            row: dict[str, Any] = {"shape": shape_name, "policy": name, "asked": density}
            if isinstance(variant, tuple):
                run = _timed_run(shape, variant, params, keys[2], states)
                speedup = dense_s / run["seconds"]
                yield {**row, **run, "speedup": speedup, "run_speedup": speedup}
                continue
            given = (shape, variant, params, videos, states, dense_s)
            made, carry, times, row["plan"] = _timed_phases(*given)
            dense, dense_s = (made, *times.values()) if dense is None else (dense, dense_s)
            lengths = variant.phases(ROWS)
            last, run_s = times[lengths[-1][0]], sum(times[phase] * rows for phase, rows in lengths)
            row |= {"seconds": last, "speedup": dense_s / last, "phases": times}
            row["run_speedup"] = ROWS * dense_s / run_s
            yield {**row, **comparison.rounded(price(made, dense)), **summary(carry.layers)}


def _timed_phases(
    shape: Shape, policy: Policy, params: PyTree, videos: Any, states: Array, dense_s: float
) -> tuple[Latents, Carry, dict[str, float], float | None]:
    """Returns the prediction of the last phase, its carry, seconds by phase, and `plan_share`.

    A row of each runs, with what the ones before it have found. Rows before the last see the first
    of the videos, which is noisier, so that what they found is as old as it would be. Dense rows of
    a sparse policy find nothing, and take `dense_s` if that is known.
    """
    carry: Any = stand_in.network(shape, policy).start(shape.grid[0], *stand_in.cells(shape))
    *before, last = (name for name, _ in policy.phases(ROWS))
    phases = {name: policy.in_phase(name) for name in [*before, last]}
    dense = {name for name, mine in phases.items() if isinstance(mine, Sparse) and mine.is_dense}
    times = dict.fromkeys(dense if dense_s else (), dense_s)
    shown = [(name, videos[0]) for name in before if name not in times] + [(last, videos[1])]
    row, made, mine = stand_in.row(shape), None, phases[last]
    networks: Any = {name: stand_in.network(shape, phases[name]) for name, _ in shown}
    networks |= plan_parts(shape, mine) if isinstance(mine, Sparse) else {}
    forwards = stand_in.compiled(networks, params, videos[0], states, carry, row)
    for name, video in shown:
        carry = jax.tree.map(_emptied, carry, is_leaf=lambda leaf: isinstance(leaf, Tally))
        given = (params, video, states, carry)
        if (name, 1) in policy.phases(ROWS):  # a row of 50, and a slow one
            times[name] = bench.seconds(forwards[name], *given, row, repeats=1)
        elif name not in times:
            times[name] = _seconds(shape, phases[name], forwards[name], given)
        made, carry = forwards[name](*given, row)
    assert made is not None
    given = (*given[:3], carry)
    plan = plan_share(shape, mine, forwards, given) if isinstance(mine, Sparse) else None
    return made, carry, times, plan


def plan_parts(shape: Shape, policy: Sparse) -> dict[str, Any]:
    """Returns what `plan_share` times: all layers are sparse, and recall is not estimated."""
    sparse = dataclasses.replace(policy, dense_layers=0, recall_queries=0)
    chosen = stand_in.Unattended(sparse)
    parts = {"whole": sparse, "listed": chosen, "plain": dataclasses.replace(chosen, chooses=False)}
    return {name: stand_in.network(shape, mine) for name, mine in parts.items()}


def plan_share(
    shape: Shape, policy: Sparse, forwards: Mapping[str, Any], given: Any, row: Call | None = None
) -> float | None:
    """Returns the time of choosing and listing blocks over that of attention among them.

    None if what is left without attention takes no less. `forwards` are compiled `plan_parts`,
    `given` what they are given after such a row; without `row` it is that of the mean of all.
    """
    parts = (forwards[name] for name in ("whole", "listed", "plain"))
    whole, listed, plain = (_seconds(shape, policy, one, given, row) for one in parts)
    return (listed - plain) / (whole - listed) if whole > listed else None


def _seconds(
    shape: Shape, policy: Policy, forward: Any, given: tuple[Any, ...], row: Call | None = None
) -> float:
    """Returns the time of a row, if none is named the mean of those of a policy's period."""
    rows = [row] if row else [stand_in.row(shape, i) for i in range(min(policy.period, 2))]
    first, *other = (bench.seconds(forward, *given, row, repeats=REPEATS) for row in rows)
    return (first + (policy.period - 1) * other[0]) / policy.period if other else first


def _timed_run(
    shape: Shape, variant: tuple[Policy, StepCache], params: PyTree, key: Key, states: Array
) -> dict[str, Any]:
    """Runs all rows with a step cache; the video loses its noise as in a run of equal steps."""
    policy, cache = variant
    network: Any = stand_in.network(shape, policy, cache)
    levels = np.linspace(1.0, 0.0, ROWS + 1).tolist()
    calls = [stand_in.row(shape, i, *levels[i : i + 2]) for i in range(ROWS)]
    video = functools.partial(stand_in.moving_regions, key, shape)
    phases = [name for name, rows in policy.phases(ROWS) for _ in range(rows)]
    start: Any = network.start(shape.grid[0], *stand_in.cells(shape))
    networks = {name: network.clone(policy=policy.in_phase(name)) for name in phases}
    forwards = stand_in.compiled(networks, params, video(1.0), states, start, calls[0])
    carry, middle, compared = start, slice(ROWS // 2 - 1, ROWS // 2 + 1), []
    began = time.perf_counter()
    for row, phase in enumerate(phases):
        made, carry = forwards[phase](params, video(levels[row]), states, carry, calls[row])
        compared += [made] if row in range(ROWS)[middle] else []
    jax.block_until_ready(made)
    seconds = (time.perf_counter() - began) / ROWS
    plain: Any = stand_in.network(shape, POLICIES["dense"])
    dense, first = stand_in.program(plain), plain.start(shape.grid[0], *stand_in.cells(shape))
    away = [
        price(one, dense(params, video(level), states, first, call)[0])
        for one, level, call in zip(compared, levels[middle], calls[middle], strict=True)
    ]
    did = ran(carry)
    share = did["cache"]["computed"] / did["cache"]["calls"]
    worse = comparison.rounded(max(away, key=lambda one: one["error"]))
    return {"seconds": seconds, "computed": round(share, 4), **worse, **did["attention"]}


def _emptied(leaf: Any) -> Any:
    """Returns a tally of no calls for a tally, and other leaves as they are."""
    return jax.tree.map(jnp.zeros_like, leaf) if isinstance(leaf, Tally) else leaf


def main(what: Any, **options: Any) -> None:
    """Runs and prints, where there is no command line."""
    print(text(run(BenchOptions(what, **options))))


@jax.jit
def price(made: Latents, dense: Latents) -> dict[str, Array]:
    """Returns how far a prediction is from that of dense attention.

    `error` is the norm of the difference, relative to the norm of the prediction. PSNR and SSIM
    are those of three channels as pictures, in which three deviations to both sides are 0..1.
    """
    centre, spread = dense.mean(), 6 * dense.std()
    one, two = ((x[..., :3] - centre) / spread + 0.5 for x in (made, dense))
    error = jnp.linalg.norm(made - dense) / jnp.linalg.norm(dense)
    return {"error": error, "psnr": psnr(one, two).mean(), "ssim": ssim(one, two).mean()}


def _names(options: BenchOptions) -> tuple[str, ...]:
    """Returns the names that were asked for; refuses numbers and names that are none."""
    known: Mapping[str, Any] = SHAPES
    small, large = "tiny", ("wan-1.3b-480p",)
    if options.what in ("families", "parallel"):
        known, small = families.FAMILIES, "wan-tiny"
    if options.what == "families":
        large = families.COMPARED
    if options.what == "streams":
        known, small, large = pace.STREAMS, "stream-tiny", pace.COMPARED
    names = options.shape or ((small,) if jax.default_backend() == "cpu" else large)
    for name in names:
        if name not in known:
            fix = f"shapes are {', '.join(known)}"
            raise ConfigError(f"there is no shape {name!r}", nearest(name, known), fix)
    for block in options.blocks:
        if block < 1:
            raise ConfigError(f"a block of {block} tokens", "it has 1 or more", "use 128 or 64")
    for density in options.densities:
        if not 0 < density <= 1:
            fix = "use 0.25 for a quarter of it"
            raise ConfigError(f"density is {density:g}", "it is a share, in (0, 1]", fix)
    return names


def _variants(options: BenchOptions, shapes: Iterable[Shape]) -> dict[tuple[str, float], Any]:
    """Returns every policy at every density, all of which can run on all shapes."""
    sparse: dict[str, Any] = {
        name: policy for name, policy in POLICIES.items() if isinstance(policy, Sparse)
    }
    found = {}
    for density, name in itertools.product(options.densities or (0.25,), options.policies):
        if name not in sparse:
            what = f"a sparse policy called {name!r} was asked for"
            raise ConfigError(what, "there is none", nearest(name, sparse))
        fields: Any = {"density": density, "dense_layers": options.dense_layers}
        found[name, density] = dataclasses.replace(sparse[name], **fields)
    for shape, policy in itertools.product(shapes, found.values()):
        stand_in.network(shape, policy).start(shape.grid[0], *stand_in.cells(shape))
    return found


def _cached(
    options: BenchOptions, shapes: Iterable[Shape], variants: Mapping[tuple[str, float], Any]
) -> dict[tuple[str, float], tuple[Policy, StepCache]]:
    """Returns every cache with every attention that it goes with, dense attention at least."""
    known, found = PARTS["cache"], {}
    for name, (asked, policy) in itertools.product(options.caches, variants.items()):
        cache, dense = known.get(name), asked[0] == "dense"
        if cache is None:
            what = f"a step cache called {name!r} was asked for"
            raise ConfigError(what, "there is none", nearest(name, known))
        try:
            cache = cache.told(rectified_flow())
            for shape in shapes:
                network = stand_in.network(shape, policy, cache)
                network.start(shape.grid[0], *stand_in.cells(shape))
        except ConfigError:
            if dense:
                raise
            continue
        found[name if dense else f"{asked[0]}+{name}", asked[1]] = (policy, cache)
    return found
