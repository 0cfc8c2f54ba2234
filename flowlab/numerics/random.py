"""Counter-based random numbers, drawn inside kernels.

Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
maps (key, counter) to two 32-bit words with additions, rotations and exclusive-ors alone. A stream
is a key derived from (seed, layer, role); element i depends on its stream and i, so that the
numbers do not depend on depth, ensemble size, order, threads or dtype.
"""

import math

import numpy as np
from numba import uint32

from flowlab.kernel import jit, kernel

_PARITY = np.uint32(0x1BD11BDA)
_TWO_PI_31 = np.float32(math.pi * 2.0**-31)


@jit
def _mix(a, b, rotation):
    a = uint32(a + b)
    b = uint32(uint32(b << uint32(rotation)) | uint32(b >> uint32(32 - rotation)))
    return a, uint32(b ^ a)


@jit
def threefry(k0, k1, c0, c1):
    """Two 32-bit words from a 64-bit key and a 64-bit counter."""
    k2 = uint32(k0 ^ k1 ^ _PARITY)
    a, b = uint32(c0 + k0), uint32(c1 + k1)
    a, b = _mix(a, b, 13)
    a, b = _mix(a, b, 15)
    a, b = _mix(a, b, 26)
    a, b = _mix(a, b, 6)
    a, b = uint32(a + k1), uint32(b + k2 + uint32(1))
    a, b = _mix(a, b, 17)
    a, b = _mix(a, b, 29)
    a, b = _mix(a, b, 16)
    a, b = _mix(a, b, 24)
    a, b = uint32(a + k2), uint32(b + k0 + uint32(2))
    a, b = _mix(a, b, 13)
    a, b = _mix(a, b, 15)
    a, b = _mix(a, b, 26)
    a, b = _mix(a, b, 6)
    a, b = uint32(a + k0), uint32(b + k1 + uint32(3))
    a, b = _mix(a, b, 17)
    a, b = _mix(a, b, 29)
    a, b = _mix(a, b, 16)
    a, b = _mix(a, b, 24)
    a, b = uint32(a + k1), uint32(b + k2 + uint32(4))
    a, b = _mix(a, b, 13)
    a, b = _mix(a, b, 15)
    a, b = _mix(a, b, 26)
    a, b = _mix(a, b, 6)
    return uint32(a + k2), uint32(b + k0 + uint32(5))


@jit
def _log(u):
    """ln u for float32 u in (0, 1]: u = 2^k m with m in [sqrt(1/2), sqrt 2), atanh series for m."""
    # Numba widens integers in every operation: brought back to 32 bits at once, they fill vectors.
    bits = np.float32(u).view(np.int32)
    k = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = np.int32(bits - np.int32(k << np.int32(23))).view(np.float32)
    t = (m - np.float32(1)) / (m + np.float32(1))
    s = t * t
    series = np.float32(2 / 9) * s + np.float32(2 / 7)
    series = series * s + np.float32(2 / 5)
    series = series * s + np.float32(2 / 3)
    series = series * s + np.float32(2)
    return np.float32(k) * np.float32(math.log(2.0)) + t * series


@jit
def _gaussian_pair(a, b):
    """Two independent standard normals in float32 from two words (Box and Muller 1958)."""
    u = (np.float32(np.int32(a >> uint32(1))) + np.float32(0.5)) * np.float32(2.0**-31)
    radius = np.sqrt(np.float32(-2) * _log(u))
    # The top two bits choose a quadrant, the rest an angle within [-pi/4, pi/4).
    quadrant = np.int32(uint32(b + uint32(1 << 29)) >> uint32(30))
    theta = np.float32(np.int32(uint32(b << uint32(2))) >> np.int32(2)) * _TWO_PI_31
    s = theta * theta
    sine = np.float32(-1 / 5040) * s + np.float32(1 / 120)
    sine = sine * s - np.float32(1 / 6)
    sine = theta + theta * s * sine
    cosine = np.float32(1 / 40320) * s - np.float32(1 / 720)
    cosine = cosine * s + np.float32(1 / 24)
    cosine = cosine * s - np.float32(0.5)
    cosine = cosine * s + np.float32(1)
    odd = np.int32(quadrant & np.int32(1)) != np.int32(0)
    x = sine if odd else cosine
    y = cosine if odd else sine
    x = -x if np.int32(np.int32(quadrant + np.int32(1)) & np.int32(2)) != np.int32(0) else x
    y = -y if np.int32(quadrant & np.int32(2)) != np.int32(0) else y
    return radius * x, radius * y


@jit
def _stream_key(seed, layer, role):
    """A stream's key from the seed's two words, the layer and the role."""
    low, high = uint32(seed & 0xFFFFFFFF), uint32(seed >> 32)
    return threefry(low, high, uint32(layer), uint32(role))


@kernel("(),()->(n)")
def fill_normal(seed, layer, out, scale, role):
    """Fill with ``scale`` times standard normals of float32 resolution from one stream."""
    k0, k1 = _stream_key(seed, layer, role)
    half = (out.size + 1) // 2
    low, high = out[:half], out[half:]
    factor = out.dtype.type(scale)
    for i in range(high.size):
        a, b = threefry(k0, k1, uint32(i), uint32(0))
        x, y = _gaussian_pair(a, b)
        low[i] = factor * x
        high[i] = factor * y
    if half > high.size:
        a, b = threefry(k0, k1, uint32(half - 1), uint32(0))
        x, y = _gaussian_pair(a, b)
        low[half - 1] = factor * x


@kernel("(),()->(n)")
def fill_uniform(seed, layer, out, scale, role):
    """Fill with numbers uniform on (-scale, scale) from one stream."""
    k0, k1 = _stream_key(seed, layer, role)
    half = (out.size + 1) // 2
    unit = scale * 2.0**-31
    for i in range(half):
        a, b = threefry(k0, k1, uint32(i), uint32(0))
        out[i] = (np.float64(np.int32(a)) + 0.5) * unit
        if half + i < out.size:
            out[half + i] = (np.float64(np.int32(b)) + 0.5) * unit


@kernel("->(n)")
def fill_constant(out, value):
    """Fill with one value."""
    out[:] = value
