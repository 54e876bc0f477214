"""`spiece.model`: the ids of SentencePiece, where pieces stand, and what is no such file."""

import numpy as np
import pytest

from jvdm.errors import WeightsError
from jvdm.text.pieces import PieceTokenizer
from tests.text.pieces import ODD, SPIECE, read_spiece


def test_odd_prompts_have_the_ids_of_sentencepiece():
    ours, stored = read_spiece(SPIECE.read_bytes()), np.load(SPIECE.with_suffix(".npy"))
    assert len(ODD) == len(stored) > 30
    for text, expected in zip(ODD, stored, strict=True):
        found = np.pad(ours.encode(text).ids, (0, len(expected)))[: len(expected)]
        np.testing.assert_array_equal(found, expected, err_msg=text)


def test_tokens_of_gaps_and_ends_are_read_as_such():
    ours = read_spiece(SPIECE.read_bytes())
    count = ours.get_vocab_size() - 100
    ids = ours.encode("a<extra_id_0> <extra_id_99></s>").ids
    assert [i for i in ids if i >= count or i == 1] == [count + 99, count, 1, 1]


def test_a_prompt_is_cut_and_its_entities_are_kept():
    tokenizer = PieceTokenizer(str(SPIECE), max_tokens=6, unescapes=False)
    ids, dropped = tokenizer.encode("a red ball rolls over the green ground")
    assert ids[-1] == 1 and dropped.endswith("green ground")
    reads = PieceTokenizer(str(SPIECE), max_tokens=16)
    kept = PieceTokenizer(str(SPIECE), max_tokens=16, unescapes=False)
    np.testing.assert_array_equal(reads.encode("&amp;")[0], kept.encode("&")[0])
    assert (kept.encode("&amp;")[0] != kept.encode("&")[0]).any()


@pytest.mark.parametrize("harm", ["pointer", "cut", "empty", "bpe"])
def test_what_is_no_such_file_is_refused(tmp_path, harm):
    content = SPIECE.read_bytes()
    harmed = {
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "cut": content[:-1],
        "empty": b"",
        "bpe": content + b"\x12\x02\x18\x02",  # training: algorithm 2; messages are joined
    }[harm]
    path = tmp_path / "spiece.model"
    path.write_bytes(harmed)
    with pytest.raises(WeightsError, match="is no tokenizer"):
        PieceTokenizer(str(path)).encode("a")
