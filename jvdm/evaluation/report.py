"""Measures of several sources side by side, as JSON data and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jvdm.evaluation.estimates import Estimate, Measure, estimate, gather, ratio
from jvdm.evaluation.frechet import halves_distance
from jvdm.fidelity import decibels

SOURCES = ("true", "reconstruction", "samples")
"""True clips and what the autoencoder makes of them are the floors of the samples."""

NO_READER = (
    "These weights have no reader, so shapes, sizes, verbs and cameras are not judged. Train one\n"
    "with `jvdm train configs/reader.py` and give its weights folder with --reader."
)

# A jitted function returns a dictionary sorted by name; people want what matters first.
_ORDER = (
    *("colour set", "count", "fused", "permanence", "lost", "created", "jumped", "resized"),
    *("direction", "relation", "left or right", "behind or in front"),
    *("reader colours", "reader shape", "reader size", "reader all"),
    *("verb", "verbs", "speed word", "camera", "gravity", "gravity residual"),
    *("speed, cells per frame", "frame change", "jitter", "seam index"),
    *("model", "copy", "gain", "reconstruction", "kept", "kept, reconstruction"),
    *("PSNR", "object PSNR", "first frame PSNR", "SSIM"),
)

Data = dict[str, Any]
Measured = Mapping[str, Measure]


def as_data(value: Estimate) -> Data:
    """Returns an estimate as JSON data."""
    rounded = {name: round(float(getattr(value, name)), 5) for name in ("mean", "low", "high")}
    return {**rounded, "count": value.count}


def summarize(measured: Mapping[str, Measured]) -> dict[str, Data]:
    """Means with intervals by measure and source; what was measured nowhere is left out."""
    rows: dict[str, Data] = {}
    for source, measures in measured.items():
        for name, measure in measures.items():
            mean = estimate(np.asarray(measure.value), np.asarray(measure.counted))
            if mean.count:
                rows.setdefault(name, {})[source] = as_data(mean)
    return _sorted(rows)


def _sorted(rows: Mapping[str, Data]) -> dict[str, Data]:
    return dict(sorted(rows.items(), key=lambda row: _ORDER.index(row[0])))


def flicker(measured: Mapping[str, Measured]) -> Data:
    """Frame change of samples over that of reconstructions of the true clips."""
    samples, coded = (
        np.asarray(measured[source]["frame change"].value) for source in SOURCES[:0:-1]
    )
    return as_data(ratio(samples, coded))


def frechet(features: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Reader Frechet distance of each source to the true clips, halves against halves."""
    return {
        source: round(halves_distance(values, features["true"]), 4)
        for source, values in features.items()
    }


def reconstruction(measures: Measured) -> Data:
    """PSNR pooled over clips, in dB, and SSIM, of the autoencoder."""
    rows: Data = {}
    for name, measure in measures.items():
        value = estimate(np.asarray(measure.value), np.asarray(measure.counted))
        if name.endswith("square error"):
            name = name.replace("square error", "PSNR")
            mean, low, high = (float(decibels(x)) for x in (value.mean, value.high, value.low))
            value = Estimate(mean, low, high, value.count)
        if value.count:
            rows[name] = as_data(value)
    return _sorted(rows)


def summary(title: str, parts: Sequence[Data]) -> Data:
    """Joins the batches of a set.

    Args:
        title: What the set is.
        parts: Per batch `measured` (by source: measures and reader features or None),
            `coding` (of the autoencoder) and `known` (by task).
    """
    measured = {
        source: gather([part["measured"][source][0] for part in parts]) for source in SOURCES
    }
    rows = summarize(measured)
    rows["frame change, of reconstruction"] = {"samples": flicker(measured)}
    known = {
        task: summarize({task: gather([part["known"][task] for part in parts])})
        for task in parts[0]["known"]
    }
    data: Data = {
        "title": title,
        "prompts": len(measured["samples"]["count"].value),
        "measures": rows,
        "autoencoder": reconstruction(gather([part["coding"] for part in parts])),
        "known frames": {
            task: {name: row[task] for name, row in found.items()} for task, found in known.items()
        },
    }
    if parts[0]["measured"]["true"][1] is not None:
        features = {
            source: np.concatenate([part["measured"][source][1] for part in parts])
            for source in SOURCES
        }
        data["reader Frechet distance"] = frechet(features)
    return data


def text(result: Data) -> str:
    """Returns everything that `jvdm evaluate` found as tables."""
    blocks = [] if result["settings"]["reader"] else [NO_READER]
    for name, data in result["sets"].items():
        title = f"{name}: {data['title']}, {data['prompts']} prompts; mean [95 % interval] count"
        blocks.append(table(title, data["measures"], SOURCES))
        if "reader Frechet distance" in data:
            distances = data["reader Frechet distance"].items()
            told = ", ".join(f"{source} {value:.3f}" for source, value in distances)
            blocks.append(f"reader Frechet distance to half of the true clips: {told}")
        coding = {key: {"dB or SSIM": value} for key, value in data["autoencoder"].items()}
        blocks.append(table("autoencoder", coding, ("dB or SSIM",)))
        known = data["known frames"]
        if known:
            names = dict.fromkeys(name for row in known.values() for name in row)
            turned = {
                name: {t: row[name] for t, row in known.items() if name in row} for name in names
            }
            blocks.append(table("with known frames, PSNR in dB", turned, tuple(known)))
    took = result["seconds"]
    blocks.append(f"{took['clips']} clips per batch: {took['batch']} s, sampled and decoded")
    return "\n\n".join(blocks)


def table(title: str, rows: Mapping[str, Mapping[str, Data]], columns: Sequence[str]) -> str:
    """Aligns measures with one column per source, with 95 % intervals and counts."""
    if not rows:
        return title
    cells = [["", *columns]]
    cells += [[name, *(_cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    lines = [
        line[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in cells
    ]
    return "\n".join([title, *lines])


def _cell(data: Data | None) -> str:
    if data is None:
        return "-"
    digits = 4 if 0 < abs(data["mean"]) < 0.1 else 3 if abs(data["mean"]) < 10 else 2
    mean, low, high = (f"{data[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}] {data['count']:>4}"
