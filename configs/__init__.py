"""Recipes, installed as `jvdm.configs`: one file is one run; `config()` returns the Experiment."""
