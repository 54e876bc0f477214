"""One random model for all tests of this folder; its programs are compiled once."""

import pytest

import jvdm
from tests.generate import nano


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weights folder."""
    return nano.write_weights(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def pipe(weights):
    """The loaded model."""
    return jvdm.load(weights, progress=False)
