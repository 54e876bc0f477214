"""Weights folders: a manifest and safetensors files."""

from jvdm.weights.folder import Defaults, Manifest, embedded, read_manifest, write_manifest

__all__ = ["Defaults", "Manifest", "embedded", "read_manifest", "write_manifest"]
