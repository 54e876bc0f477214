"""Planted faults, and whether the tests notice: `python -m tests.mutations [PART OF A NAME ...]`.

`mutations.txt` lists them. Each is planted in a copy of the last commit, the tests that should
notice are run (`pytest -x -n0`), and `killed` or `SURVIVED` is printed; those tests must pass
without it first. `--check` only looks whether every text still stands where the table says: one
that does not is an error, also without `--check`. The exit status is 1 if a fault survived for
which the table has no reason, 2 if the table is wrong.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".txt")
SECONDS = 400  # of one run; the slowest needs a fourth of it


class Mutation(NamedTuple):
    """One text of a file, what it is replaced by, and the tests that should fail then.

    `reason` says why none can, for what is no fault: an equivalent mutant.
    """

    name: str
    file: str
    tests: str
    old: str
    new: str
    reason: str


def read(text: str) -> Iterator[Mutation]:
    """Reads blocks of `@ file`, `: tests`, `* name`, `- old`, `+ new` and perhaps `= reason`.

    File and tests hold for the blocks that follow, and an old or new text may have many lines.
    """
    places: dict[str, str] = {}
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        parts = {m: "\n".join(line[2:] for line in lines if line[0] == m) for m in "@:*-+="}
        places |= {mark: parts[mark] for mark in "@:" if parts[mark]}
        if parts["*"]:
            yield Mutation(parts["*"], places["@"], places[":"], *(parts[m] for m in "-+="))


def wrong(mutation: Mutation, root: Path) -> str:
    """Returns why an entry does not fit the files below `root`, nothing if it does."""
    missing = [test for test in mutation.tests.split() if not (root / test.split("::")[0]).exists()]
    if missing:
        return f"there is no {missing[0]}"
    found = (root / mutation.file).read_text().count(mutation.old)
    return "" if found == 1 else f"{mutation.file} has {mutation.old!r} {found} times, not once"


def verdict(tests: str, copy: Path) -> str:
    """Says what the tests make of the files as they are."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "PYTHONDONTWRITEBYTECODE": "1",  # a file and its mutant may have one size and one time
    }
    command = [sys.executable, "-m", "pytest", "-x", "-n0", "-q", *tests.split()]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return "killed"
    if done.returncode > 1:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return {0: "SURVIVED", 1: "killed"}.get(done.returncode, "INVALID")


def planted(mutation: Mutation, copy: Path) -> str:
    """Plants a fault, runs its tests and takes it out again."""
    path = copy / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        return verdict(mutation.tests, copy)
    finally:
        path.write_text(text)


def main() -> int:
    """Tries the faults whose file or name holds one of the arguments; all without an argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="parts of files or names")
    parser.add_argument("--check", action="store_true", help="only compare the table with the code")
    options = parser.parse_args()
    chosen = [
        one
        for one in read(TABLE.read_text())
        if not options.parts or any(part in f"{one.file} {one.name}" for part in options.parts)
    ]
    found: dict[str, list[Mutation]] = {"killed": [], "SURVIVED": [], "INVALID": []}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
        subprocess.run(["tar", "x"], cwd=copy, input=archive.stdout, check=True)
        errors = [f"{one.name}: {why}" for one in chosen if (why := wrong(one, copy))]
        if errors or options.check:
            print("\n".join(errors) or f"{len(chosen)} faults fit the code")
            return 2 if errors else 0
        for tests in dict.fromkeys(one.tests for one in chosen):
            if verdict(tests, copy) != "SURVIVED":
                print(f"{tests} fails without a fault", file=sys.stderr)
                return 2
        for one in chosen:
            began, what = time.perf_counter(), planted(one, copy)
            found[what].append(one)
            print(f"{what:8} {one.name} ({time.perf_counter() - began:.0f} s)", flush=True)
    print(f"{len(found['killed'])} of {len(chosen)} killed")
    for one in found["SURVIVED"]:
        print(f"survivor: {one.name}{one.reason and ': ' + one.reason}")
    return 2 if found["INVALID"] else int(any(not one.reason for one in found["SURVIVED"]))


if __name__ == "__main__":
    sys.exit(main())
