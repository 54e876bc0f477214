"""Published networks on TPUs that are not there: each compiles, fits, and needs what docs say.

They want libtpu: `.ci/run` runs them after the other tests, but for steps and whole videos.
"""

import importlib.util
import re
from pathlib import Path

import pytest

from jvdm.plan import PlanOptions, run, text
from jvdm.targets import LIBTPU

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("libtpu"), reason="needs the wheel libtpu (pip install libtpu)"
    ),
]
PAGE = Path(__file__).parents[2] / "docs/devices.md"
ROW = re.compile(
    r"^\| `(\S+ --on v\d.*?)`.* \| (.*) \| (.*) \| ([\d.]+) GB a chip \|$", re.MULTILINE
)
ROWS = ROW.findall(PAGE.read_text())
LONG = [row for row in ROWS if "--work" in row[0]]
NUMBER = r"\d*\.\d+"


@pytest.fixture(autouse=True)
def libtpu_beside_other_processes(monkeypatch):
    for name, value in {**LIBTPU, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(name, value)


def planned(command):
    """Returns the plan of a command line, and prints it as the command does."""
    config, *words = command.split()
    given = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    found = run(PlanOptions(config, **given))
    print(text(found))
    return found


def near(said):
    """Returns what a number of the page stands for: rounded, and of one libtpu of several."""
    rounding = 0.51 * 10.0 ** -len(said.partition(".")[2])
    return pytest.approx(1e9 * float(said), abs=1e9 * (rounding + 0.02 * float(said)))


@pytest.mark.parametrize(
    ("command", "held", "made", "limit"),
    [pytest.param(*row, marks=[pytest.mark.long] * (row in LONG), id=row[0]) for row in ROWS],
)
def test_it_compiles_fits_and_needs_what_the_page_says(command, held, made, limit):
    found = planned(command)
    programs = [one["bytes_per_device"] for one in found["programs"]]
    assert max(sizes["peak"] for sizes in programs) == found["peak"] < 1e9 * float(limit)
    rests = [sizes.get("activations", 0) + sizes["temporaries"] for sizes in programs]
    sizes = programs[rests.index(max(rests))]
    needed = [sizes["parameters"] + sizes.get("other networks", 0), sizes.get("optimizer")]
    for bytes_, said in zip(needed, re.findall(NUMBER, held), strict=False):
        assert bytes_ == near(said)
    (said,) = re.findall(NUMBER, made)
    assert max(rests) == near(said)


def test_the_page_has_all_that_was_promised():
    """Training steps of 14 billion on two pods, videos of 720 lines, a small model on one chip."""
    assert {re.sub(r" --mesh \S+", "", row[0]) for row in ROWS} >= {
        "wan-14b-480p --on v5p:4x4x4 --work step",
        "wan-14b-480p --on v5e:16x16 --work step",
        "wan-14b-720p --on v6e:2x4 --work video",
        "nano --on v5e:1x1",
        "wan-1.3b-480p --on v5e:2x4",
        "wan-14b-480p --on v5p:2x2x2",
    }


def test_eight_chips_trade_what_ulysses_says():
    (one,) = planned("wan-1.3b-480p --on v5e:2x4 --mesh ring=2,sequence=4")["programs"]
    # 30 layers trade queries, keys, values and results of 32768 / 8 tokens among 4 chips.
    assert one["sent_per_device"]["all-to-all"] == 30 * 4 * (4096 * 1536 * 2) * 3 // 4
