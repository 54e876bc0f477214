"""The example of the README runs, and every module stands in its table."""

import re
from pathlib import Path

import pytest

import jvdm.world

FOLDER = Path(jvdm.world.__file__).parent


@pytest.mark.slow
def test_the_example_runs(capsys):
    names = {}
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    exec(code, names)
    assert capsys.readouterr().out.strip().endswith(".")
    assert names["clip"].video.shape == (1, 9, 64, 64, 3)
    assert names["depth"].shape == (9, 64, 64)
    assert names["edit"].changed.any()


def test_every_module_stands_in_the_table():
    rows = re.findall(r"^\| (`.*?) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
