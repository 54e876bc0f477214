"""Prompts and seeds: one of each per video, and what every branch of guidance is told."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from jvdm.errors import ConfigError
from jvdm.settings import typed

MAX_SEED = 2**32 - 1


def count(prompt: Any, num_videos: int | None) -> int:
    """Returns the number of videos that are made."""
    num_videos = 1 if num_videos is None else num_videos
    if num_videos < 1:
        raise ConfigError(f"num_videos is {num_videos}", "one or more are made", "use 1")
    if isinstance(prompt, list | tuple) and not prompt:
        raise ConfigError("the list of prompts is empty", "a video is made of each", "give one")
    return num_videos * (len(prompt) if isinstance(prompt, list | tuple) else 1)


def batch(
    prompt: Any, seed: Any, num_videos: int | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns one prompt and one seed per video; draws a seed if there is none."""
    given = tuple(prompt) if isinstance(prompt, list | tuple) else (prompt,)
    for text in given:
        if not isinstance(text, str):
            raise ConfigError(f"the prompt is {text!r:.80}", "it must be text", "use '' for none")
    prompts = tuple(text for text in given for _ in range(num_videos or 1))
    if seed is None:
        seed = secrets.randbelow(1_000_000)
    if isinstance(seed, list | tuple | range) or getattr(seed, "ndim", 0) == 1:
        seeds = tuple(typed("a seed", value, int) for value in seed)
    else:
        first = typed("the seed", seed, int)
        seeds = tuple(range(first, first + len(prompts)))
    if not prompts or len(prompts) != len(seeds):
        what = f"{len(prompts)} prompts and {len(seeds)} seeds"
        raise ConfigError(what, "each video needs one of both", "give as many seeds as prompts")
    for value in seeds:
        if not 0 <= value <= MAX_SEED:
            what = f"the seed is {value}"
            raise ConfigError(what, f"seeds are 0 to {MAX_SEED}", "choose another")
    return prompts, seeds


def of_branches(
    branches: Sequence[str], prompts: tuple[str, ...], negative: str | None
) -> tuple[str, ...]:
    """Returns the prompts of every branch, one branch after the other."""
    against = (negative or "",) * len(prompts)
    names = [name.split(" without ")[0] for name in branches]
    texts: Mapping[str, tuple[str, ...]] = {
        "unconditional": ("",) * len(prompts) if "negative" in names else against,
        "negative": against,
        "prompt": prompts,
    }
    for name in names:
        if name not in texts:
            what = f"the guidance has the branches {', '.join(branches)}"
            why = f"nothing says what {name!r} is told"
            raise ConfigError(what, why, f"use {', '.join(texts)}, or one of these without a port")
    return tuple(text for name in names for text in texts[name])
