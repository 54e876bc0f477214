"""Tests mirror the packages; `architecture` and `packaging` look at the project as a whole."""
