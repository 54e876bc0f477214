"""Whatever a table of captions holds, it is read or refused in one line."""

import json
import random

import pytest

from jvdm.data.video_folder import QUARANTINE
from jvdm.errors import ConfigError
from tests.data.test_video_folder import folder, write

NAMES = ["a.mp4"] * 12 + ["b\0.mp4", "x" * 5000, "/dev/null", "", " ", ".", "..", "a.mp4/b"]
NAMES += ["\ud800.mp4", "\u00e9.mp4", "~/x.mp4", "http://x/y.mp4", "\n.mp4", 3, None, [], {}, True]
CAPTIONS = ["a red ball rests"] * 6 + ["", None, 3, [], {"a": 1}, "x" * 200_000, "\ufffd", "\0"]
CAPTIONS += ["a red ball " * 1000, "\ud800", "\n", True]
LINES = ["[1]", "null", "{", "[" * 100_000, '{"file_name": "a", "file_name": "b"}', "NaN"]
LINES += ['{"file_name": "a.mp4", "text": ' + "[" * 2000 + "]" * 2000 + "}", "\r\r", '"']
ROWS = [
    '\n"',
    "\n,,,,,",
    "\na,b,c",
    "\n\0,\0",
    "\n" + "x" * 200_000,
    "\n" + "a," * 50_000,
    "\r\r\r",
]
HEADS = ["", "text", "file_name,file_name", "file_name;text", "\ufefffile_name,text"]


def table(rng, kind):
    """Returns the bytes of a table of which something may be wrong."""
    column = rng.choice(["file_name", "path"])
    rows = [
        {column: rng.choice(NAMES), "text": rng.choice(CAPTIONS)} for _ in range(rng.randint(0, 4))
    ]
    if kind == "jsonl":
        lines = [*map(json.dumps, rows), *([rng.choice(LINES)] if rng.random() < 0.3 else [])]
        content = "\n".join(lines).encode()
    else:
        head = rng.choice(HEADS) if rng.random() < 0.2 else "file_name,text"
        lines = [head, *(",".join(map(str, row.values())) for row in rows)]
        more = rng.choice(ROWS) if rng.random() < 0.3 else ""
        content = ("\n".join(lines) + more).encode("utf-8", "surrogatepass")
    if content and rng.random() < 0.2:
        spoilt = bytearray(content)
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        content = bytes(spoilt)
    return content


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_damaged_tables_are_read_or_refused_in_one_line(tmp_path, kind, capsys):
    rng, videos = random.Random(kind), tmp_path / "videos"
    write(videos / "a.mp4", 5)
    read = refused = 0
    for number in range(120):
        (videos / f"metadata.{kind}").write_bytes(table(rng, kind))
        try:
            records = folder(videos).open(tmp_path)
            assert len(records) > 0 and len(records.digest()) == 64
            read += 1
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1, (number, str(error))
            assert len(str(error)) < 1500, (number, str(error))
            refused += 1
    listed = (tmp_path / QUARANTINE).read_text().splitlines()
    assert all(json.loads(line).keys() == {"file", "reason"} for line in listed)
    assert read > 15 and refused > 40
