"""Token mixing in a fixed basis instead of attention: Fourier and wavelet mixers (docs/spectral.md).

Each takes the place of a block's attention, (B, N, D) -> (B, N, D) with N = prefix + H * W, and none of them
compares tokens with one another: what is mixed how is learnt, or fixed, and the same for every image.
"""

from effvit_train.models.spectral.fnet import FNetMixer
from effvit_train.models.spectral.fourier import FourierMixer, GlobalFilter
from effvit_train.models.spectral.grid import GridMixer, PrefixRead
from effvit_train.models.spectral.resample import resample
from effvit_train.models.spectral.wavelet import CoefficientGain, WaveletMixer

__all__ = [
    "CoefficientGain", "FNetMixer", "FourierMixer", "GlobalFilter", "GridMixer", "PrefixRead", "WaveletMixer",
    "resample",
]  # fmt: skip
