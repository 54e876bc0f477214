"""The table of planted faults, which is worth nothing where it does not fit the code."""

from tests.mutations import ROOT, TABLE, read, wrong


def test_every_planted_fault_has_its_place():
    faults = list(read(TABLE.read_text()))
    assert len(faults) > 200
    assert not list(filter(None, (wrong(fault, ROOT) for fault in faults)))
