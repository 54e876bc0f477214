"""Pictures, and requests to the demo that mean harm or cannot be used, by what is wrong."""

import base64
import io

import numpy as np
from PIL import Image


def png(color, size=(16, 16)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "png")
    return content.getvalue()


def noise() -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def text64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 3.6 thousand million pixels."""
    content = bytearray(png("white"))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


HOSTILE = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "huge": b'{"prompt": "' + b"a" * 1_500_000 + b'"}',
    "no prompt": {},
    "an empty prompt": {"prompt": ""},
    "blanks": {"prompt": " \t\n" * 50},
    "a long prompt": {"prompt": "a" * 400},
    "a prompt that is none": {"prompt": ["a"]},
    "half a character": b'{"prompt": "\\ud800"}',
    "no number": b'{"prompt": "a", "guidance_scale": NaN}',
    "no length": {"prompt": "a", "duration": "-5s"},
    "a long film": {"prompt": "a", "duration": "100h"},
    "large frames": {"prompt": "a", "height": 2**40, "width": 16},
    "negative frames": {"prompt": "a", "height": -16, "width": -16},
    "unknown": {"prompt": "a", "workdir": "/tmp"},
    "another file": {"prompt": "a", "video": "/etc/passwd"},
    "several": {"prompt": "a", "num_videos": 4},
    "a path": {"prompt": "a", "image": "../../../../etc/passwd"},
    "an image that is none": {"prompt": "a", "image": 7},
    "text as image": {"prompt": "a", "image": text64(b"#!/bin/sh")},
    "a cut image": {"prompt": "a", "image": text64(noise()[:400])},
    "a broken image": {"prompt": "a", "image": text64(b"\x89PNG" + b"\0" * 100)},
    "a bomb": {"prompt": "a", "image": text64(bomb())},
    "a cut film": {"prompt": "a", "image": text64(b"\0\0\0\x1cftypisom" + bytes(500))},
    "a huge image": {"prompt": "a", "image": "A" * 2_000_000},
    "a list of files": {"prompt": "a", "image": [text64(png("white"))]},
    "a wrong seed": {"prompt": "a", "seed": -1},
    "a system that is none": {"prompt": "a", "system": 7},
    "a system of the disk": {"prompt": "a", "system": "../../tmp/x.py"},
    "a system for clips": {"prompt": "a", "system": "freelong"},
    "dense rows": {"prompt": "a", "attention": "nearly"},
}
