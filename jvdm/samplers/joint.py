"""What modalities of one run share: a clock in seconds, and the branches of guidance."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Key, PyTree
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers.denoiser import Denoised, JointDenoiser, PerFrame
from jvdm.samplers.guidance import Guidance, remembered, shown
from jvdm.samplers.matrices import TimestepMatrix, from_index
from jvdm.samplers.modalities import each, every
from jvdm.samplers.noise import initial_noise
from jvdm.samplers.process import Process

Levels = Float[Array, " _"]
"""A grid; those of modalities may have other lengths."""


def waves_in_seconds(
    levels: Mapping[str, Levels],
    seconds: Mapping[str, Float[np.ndarray, " _"]],
    lag: int = 0,
    block_s: float = 1.0,
) -> dict[str, TimestepMatrix]:
    """Returns matrices whose frames go together where they belong to the same time.

    The clip is divided into blocks of `block_s` seconds, each `lag` rows behind the one before it:
    `index[k, f] = clip(k - lag * floor(seconds[f] / block_s), 0, S)`. Grids may differ, such as in
    their shift, but have equally many levels.

    Args:
        levels: Grid of every modality.
        seconds: When each latent frame begins, from 0 on.
        lag: Rows between neighbouring blocks; 0 denoises all together.
        block_s: Length of a block in seconds.

    Raises:
        ConfigError: If grids have different lengths, or lag or block are out of range.
    """
    steps = {name: grid.shape[0] - 1 for name, grid in levels.items()}
    if len(set(steps.values())) > 1:
        raise ConfigError(
            "grids of " + ", ".join(f"{name} with {count} steps" for name, count in steps.items()),
            "the modalities of a run share its rows",
            "use as many steps for each; their levels may differ",
        )
    if lag < 0 or block_s <= 0:
        raise ConfigError(
            f"lag {lag}, blocks of {block_s} s", "", "use a lag of 0 or more and a positive length"
        )
    begins = every(seconds, levels)
    blocks = {name: np.floor(np.asarray(begins[name]) / block_s).astype(int) for name in levels}
    last = max(int(block.max()) for block in blocks.values())
    count = next(iter(steps.values()))
    rows = np.arange(count + lag * last + 1)[:, None]
    return {
        name: from_index(levels[name], np.clip(rows - lag * blocks[name][None], 0, count))
        for name in levels
    }


def noise_of(
    key: Key, samples: Array, shapes: Mapping[str, Sequence[int]]
) -> dict[str, Float[Array, "_ _ ..."]]:
    """Returns the noise that a run of several modalities starts from.

    Args:
        key: Stream of the run; that of a modality is `named` by it.
        samples: Index of each sample in the whole job.
        shapes: Latent frames and shape of one, `(F, ...)`, of every modality.
    """
    return {
        name: initial_noise(named(key, name), samples, frames, shape)
        for name, (frames, *shape) in shapes.items()
    }


def guided_together(
    rules: Mapping[str, Guidance],
    denoiser_of: Callable[[tuple[str, ...]], JointDenoiser],
    processes: Process | Mapping[str, Process],
) -> JointDenoiser:
    """Returns the denoiser of all modalities that follows a rule for each.

    The network is asked once, about a branch-major batch of the branches that any rule names
    (`all_branches`); a rule combines its own. The first carry is `guided_carry_together`.

    Args:
        rules: The rule of every modality.
        denoiser_of: Returns the denoiser of all modalities for the named branches.
        processes: The process of all, or of each.

    Raises:
        ConfigError: If a rule evaluates branches one by one.
    """
    for name, rule in rules.items():
        if rule.execution != "batched":
            raise ConfigError(
                f"the guidance of {name} evaluates branches one by one",
                "branches of several modalities are one batch",
                'use a rule with execution="batched"',
            )
    names = all_branches(rules)
    denoiser, processes = denoiser_of(names), every(processes, rules)

    def follow(x: Any, call: Any, carry: PyTree) -> tuple[Any, PyTree]:
        memory, carry = carry if _remember(rules) else (dict.fromkeys(rules), carry)
        batch = each(lambda rule, *seen: shown(rule, names, *seen), dict(rules), processes, x, call)
        said, carry = denoiser(each(itemgetter(0), batch), each(itemgetter(1), batch), carry)

        def combine(
            rule: Guidance, said: Denoised, memory: PerFrame | None, *now: Any
        ) -> tuple[Denoised, PerFrame | None]:
            parts = zip(*(jnp.split(value, len(names)) for value in said), strict=True)
            branches = {name: Denoised(*part) for name, part in zip(names, parts, strict=True)}
            own = [branches[name] for name in rule.branches]
            if memory is None:
                return rule.combine(own, *now), None
            return remembered(rule, memory, own, *now)

        combined = each(combine, dict(rules), said, memory, x, call, processes)
        said, memory = (each(itemgetter(part), combined) for part in (0, 1))
        return said, (memory, carry) if _remember(rules) else carry

    return follow


def guided_carry_together(
    rules: Mapping[str, Guidance], carry: PyTree, shapes: Mapping[str, Sequence[int]]
) -> PyTree:
    """Returns the first carry of `guided_together`.

    Args:
        rules: The rule of every modality.
        carry: That of the network, for the branch-major batch of `all_branches`.
        shapes: Shape of the latents `[B, F, ...]` of every modality.
    """
    if not _remember(rules):
        return carry

    def memory(rule: Guidance, shape: Sequence[int]) -> PerFrame | None:
        return PerFrame(rule.first_memory(tuple(shape))) if rule.remembers else None

    return each(memory, dict(rules), shapes), carry


def all_branches(rules: Mapping[str, Guidance]) -> tuple[str, ...]:
    """Returns the branches that any rule names, in an order that no order of a dict changes.

    A program sees the rules in the order of their names, and who reads the prompts does not.
    """
    ordered = (rules[modality] for modality in sorted(rules))
    return tuple(dict.fromkeys(name for rule in ordered for name in rule.branches))


def _remember(rules: Mapping[str, Guidance]) -> bool:
    """Whether any rule remembers earlier steps."""
    return any(rule.remembers for rule in rules.values())
