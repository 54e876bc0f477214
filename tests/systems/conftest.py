"""The random model of tests/generate."""

from tests.generate.conftest import pipe, weights

__all__ = ["pipe", "weights"]
