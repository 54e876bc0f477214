"""What every error that a user meets has in common."""

from jvdm.errors import LONGEST, ConfigError


def test_of_what_is_very_long_an_error_shows_the_ends():
    error = ConfigError("begin" + "x" * 10**6 + "end", "why", "fix")
    text = str(error)
    assert len(text) < LONGEST and text.startswith("beginx") and text.endswith("xend; why; fix")
    assert error.what in text and " … " in error.what


def test_an_error_of_usual_length_says_all():
    error = ConfigError("x" * LONGEST, "", "fix")
    assert str(error) == "x" * LONGEST + "; fix"
