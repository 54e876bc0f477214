"""`spiece.model` against SentencePiece; `python -m tests.parity.test_pieces` trains the file.

The stored file has a small table that normalises text; the table of published files is tried
where SentencePiece is installed.
"""

import io
import random

import numpy as np
import pytest

from tests.text.pieces import ODD, SPIECE, read_spiece

spm = pytest.importorskip("sentencepiece", reason="this one needs SentencePiece")

pytestmark = pytest.mark.parity

PROSE = """a red ball rolls over the green ground while small blue boxes rest near large yellow
cans; the camera pans slowly to left and right, zooming in. It's 25% café naïve résumé Ünïcode 10
20 2026 1/2 & < > " ' ( ) - — … ! ? : / déjà vu 你好 世界 こんにちは привет"""
BLANKS = "\t\n\r\u00a0\u2003\u3000"
RULES = [
    *((chr(wide), chr(wide - 0xFEE0)) for wide in range(0xFF01, 0xFF5F)),
    *((blank, " ") for blank in BLANKS),
    *((chr(control), "") for control in range(1, 9)),
    ("ﬁ", "fi"),
    ("½", "1/2"),
    ("e\u0301", "é"),
]


def trained(**settings) -> bytes:
    """Returns a model of random sentences."""
    rng, made = random.Random(0), io.BytesIO()
    lines = (" ".join(rng.choices(PROSE.split(), k=8)) for _ in range(300))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=made,
        vocab_size=200,
        model_type="unigram",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **ids,
        **settings,
    )
    return made.getvalue()


def with_small_table(path) -> bytes:
    rules = ["\t".join(" ".join(f"{ord(c):X}" for c in side) for side in rule) for rule in RULES]
    path.write_text("\n".join(rules) + "\n")
    return trained(normalization_rule_tsv=str(path))


@pytest.mark.parametrize("table", ["small", "nmt_nfkc"])
def test_odd_prompts_have_the_ids_of_sentencepiece(table):
    content = SPIECE.read_bytes() if table == "small" else trained(normalization_rule_name=table)
    theirs, ours = spm.SentencePieceProcessor(model_proto=content), read_spiece(content)
    for text in ODD:
        assert ours.encode(text).ids == [*theirs.encode(text), 1], text


if __name__ == "__main__":
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        SPIECE.write_bytes(with_small_table(pathlib.Path(name) / "rules.tsv"))
    processor = spm.SentencePieceProcessor(model_proto=SPIECE.read_bytes())
    ids = [[*processor.encode(text), 1] for text in ODD]
    table = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, found in zip(table, ids, strict=True):
        row[: len(found)] = found
    np.save(SPIECE.with_suffix(".npy"), table)
