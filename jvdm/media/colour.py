"""High dynamic range and wide colour to what an ordinary screen shows: BT.709, 8 bits.

Light is in units of the reference white of 203 cd/m2 (ITU-R BT.2408). Highlights up to 1,000
cd/m2 are compressed by the curve of ITU-R BT.2390, section 5.4.1, with the hue kept.
"""

from typing import Any

import numpy as np

from jvdm.arrays import Float, UInt8, UInt16

PQ, HLG = 16, 18  # transfer functions as FFmpeg numbers them: SMPTE ST 2084, ARIB STD-B67
BT2020, DISPLAY_P3 = 9, 12  # primaries

WHITE, PEAK = 203.0, 1000.0  # cd/m2
GAMMA = 2.4  # of a screen, ITU-R BT.1886
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of the primaries of BT.2020
_TO_BT709 = {
    BT2020: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    DISPLAY_P3: [[1.2249, -0.2247, 0.0], [-0.0421, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
}
_CODES = np.linspace(0, 1, 65536)
# Constants of SMPTE ST 2084.
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def is_wide(transfer: int, primaries: int) -> bool:
    """Whether colours of these numbers of FFmpeg need more than BT.709 has."""
    return transfer in (PQ, HLG) or primaries in _TO_BT709


def to_bt709(
    codes: UInt16[np.ndarray, "H W 3"], transfer: int, primaries: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture that 16-bit codes of another transfer function or gamut show."""
    light = _light(codes, transfer) @ np.array(_TO_BT709.get(primaries, np.eye(3)), np.float32).T
    if transfer in (PQ, HLG):
        largest = np.maximum(light.max(-1, keepdims=True), 1e-6)
        light = light * (_compressed(largest * WHITE) / WHITE / largest)
    shown = np.clip(light, 0, 1) ** np.float32(1 / GAMMA)
    return np.rint(255 * shown).astype(np.uint8)


def _light(codes: np.ndarray, transfer: int) -> Float[np.ndarray, "H W 3"]:
    """Returns the light of codes, 1 for reference white."""
    if transfer == PQ:
        return (_pq_light(_CODES) / WHITE).astype(np.float32)[codes]
    if transfer != HLG:
        return (_CODES**GAMMA).astype(np.float32)[codes]
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(_CODES <= 0.5, _CODES**2 / 3, (np.exp((_CODES - c) / a) + b) / 12)
    light = scene.astype(np.float32)[codes]
    return light * (light @ _LUMINANCE)[..., None] ** np.float32(0.2) * np.float32(PEAK / WHITE)


def _pq_light(code: np.ndarray) -> np.ndarray:
    """Returns cd/m2."""
    power = code ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_code(light: Any) -> Any:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _compressed(light: np.ndarray) -> np.ndarray:
    """Returns cd/m2 up to `WHITE` for cd/m2 up to `PEAK`; dark ones stay as they are."""
    top = _pq_code(PEAK)
    largest = _pq_code(WHITE) / top
    knee = 1.5 * largest - 0.5
    code = np.minimum(_pq_code(light) / top, 1)
    t = np.maximum(code - knee, 0) / (1 - knee)
    curved = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * largest
    )
    return _pq_light(np.where(code < knee, code, curved) * top).astype(np.float32)
