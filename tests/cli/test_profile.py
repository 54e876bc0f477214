"""`jvdm profile`: kinds of operations against closed forms, and what was measured."""

import importlib
import json

import jax
import jax.numpy as jnp
import pytest

from jvdm.cli import main
from jvdm.errors import ConfigError
from jvdm.products import operations, product_flops
from jvdm.profiling import ProfileOptions, kind_of, run, text
from jvdm.targets import MACHINES

TOKENS, PROMPT, WIDTH, LAYERS, BRANCHES = 12, 5, 24, 2, 2  # of wan-tiny


@pytest.fixture(scope="module")
def found():
    return run(ProfileOptions("wan-tiny", "h200", measure=False))


def by_kind(program):
    return {row["kind"]: row for row in program["rows"]}


def test_operations_of_a_loop_count_as_often_as_it_runs():
    def program(x):
        turns = jax.lax.scan(lambda y, _: (jnp.tanh(y @ y), None), x, length=5)[0]
        return jnp.sum(turns)

    x = jnp.zeros((4, 4))
    listed = list(operations(program, x))
    linear = sum(one.times * one.flops for one in listed if kind_of(one) == "linear")
    assert linear == product_flops(program, x)
    (tanh,) = [one for one in listed if one.name == "tanh"]
    assert (tanh.times, tanh.flops, tanh.bytes) == (5, 16, 64)
    (total,) = [one for one in listed if one.name == "reduce_sum"]
    assert (total.times, total.flops, total.bytes) == (1, 16, 68)


def test_attention_is_what_its_lengths_say(found):
    _, row, _ = found["programs"]
    assert row["times"] == 50
    lengths = {entry.pop("kind"): entry for entry in map(dict, row["attention"])}
    alike = {"queries": TOKENS, "batch": 2 * BRANCHES, "times": LAYERS}
    assert lengths == {
        "attention self": {**alike, "keys": TOKENS},
        "attention cross": {**alike, "keys": PROMPT},
    }
    # Two products for each pair and feature, and at most 30 operations of each head's softmax.
    for kind, keys in (("attention self", TOKENS), ("attention cross", PROMPT)):
        pairs = BRANCHES * LAYERS * TOKENS * keys
        flops = by_kind(row)[kind]["flops"]
        assert 4 * pairs * WIDTH < flops < pairs * (4 * WIDTH + 2 * 30)


def test_a_transformer_is_linear_and_an_autoencoder_convolutions(found):
    text_, row, decoder = map(by_kind, found["programs"])
    assert "conv" not in row and "conv" not in text_
    assert row["linear"]["flops"] > sum(row[kind]["flops"] for kind in row) / 2
    assert decoder["conv"]["flops"] > sum(decoder[kind]["flops"] for kind in decoder) / 2
    # Norms compute less than a number for each byte: what they take is memory's.
    for kinds in (text_, row, decoder):
        assert kinds["norm"]["intensity"] < 1
        for one in kinds.values():
            times = one["flops"] / 989e12, one["bytes"] / 4.8e12
            assert one["predicted_s"] == pytest.approx(max(times))
    assert "conv" in text(found) and "12 queries, 5 keys" in text(found)


@pytest.mark.slow
def test_the_study_says_what_the_tables_say():
    """Each number of `configs/systems/beyond_llms.py`; shares are those of predicted times."""
    machine = MACHINES["h200"]
    tables = [
        run(ProfileOptions(name, measure=False))["programs"]
        for name in ("wan-1.3b-480p", "ltx-2b-512p")
    ]

    def total(program, apart=False):
        """Milliseconds of a run; `apart` of its operations, as if scores were written and read."""
        if not apart:
            return 1e3 * sum(row["predicted_s"] for row in program["rows"])
        times = (
            max(row["flops"] / machine.flops, row["unfused_bytes"] / machine.reads)
            for row in program["rows"]
        )
        return 1e3 * sum(times)

    def shares(number, kind, of="predicted_s"):
        for table in tables:
            rows = table[number]["rows"]
            yield 100 * by_kind(table[number])[kind][of] / sum(row[of] for row in rows)

    words, steps, decoders = zip(*tables, strict=True)
    slower = [100 * (total(one, apart=True) / total(one) - 1) for one in words]
    wan, ltx = ((total(one, apart=True), total(one)) for one in steps)
    assert min(shares(2, "conv", "flops")) >= 99 and not any("conv" in by_kind(x) for x in steps)
    expected = [
        "{:.0f} and {:.0f} % of decoding here, though".format(*shares(2, "conv")),
        "{:.0f} % of a step of Wan, {:.0f} % of one of LTX".format(*shares(1, "linear")),
        "{:.0f} and {:.0f} % of the text encoders".format(*shares(0, "linear")),
        "a step of Wan falls from {:,.0f} to {:.0f} ms, one of LTX from".format(*wan),
        "one of LTX from {:.0f} to {:.0f}, the text encoders".format(*ltx),
        "the text encoders by {:.0f} and {:.0f} %".format(*slower),
        "{:.0f} and {:.0f} % of the operations of a step".format(
            *shares(1, "attention self", "flops")
        ),
        f"{decoders[0]['times']} pieces of {total(decoders[0]):.0f} ms are predicted",
    ]
    for program in (words[0], steps[0], decoders[0], words[1], steps[1]):
        expected.append(f"{program['attention'][0]['queries']:,}")
    study = importlib.import_module("jvdm.configs.systems.beyond_llms")
    said = " ".join(str(study.__doc__).split())
    assert not [one for one in expected if one not in said], expected


@pytest.mark.slow
def test_times_are_measured_by_kind(capsys):
    assert main(["profile", "wan-tiny", "--json"]) == 0
    programs = json.loads(capsys.readouterr().out)["programs"]
    spent = [{row["kind"]: row["measured_s"] for row in one["rows"]} for one in programs]
    for kinds in spent:
        assert min(kinds.values()) >= 0 and sum(kinds.values()) > 1e-6
    assert spent[2]["conv"] > 0 and spent[1]["linear"] > 0 and spent[1]["attention self"] > 0


def test_a_machine_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="h100, h200"):
        run(ProfileOptions("wan-tiny", "h20"))
