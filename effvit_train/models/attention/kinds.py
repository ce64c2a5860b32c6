"""The kinds of attention, and where each is built. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

EXACT = "exact"


@dataclass(frozen=True)
class Kind:
    """A module that takes the place of a block's attention.

    Its class gives (B, N, D) for (B, N, D), and takes timm's `attn_mask` and `is_causal` beside. Its settings are
    the arguments of its constructor that are not named below, with their defaults; a class method
    `settled(site, **settings)`, where there is one, makes those that depend on the model concrete.

    Attributes:
        where: its class, `module:Class`.
        keeps: it has timm's `qkv`, `proj`, norms and drops under their names, taken over from the exact
            attention: `Class(exact, site, **settings)`. Otherwise nothing of it is left:
            `Class(dim, grid=(H, W), prefix=n, **settings)`.
    """

    where: str
    keeps: bool = True


KINDS: dict[str, Kind] = {
    "window": Kind("effvit_train.models.attention.window:Window"),
    "pooled": Kind("effvit_train.models.attention.pooled:Pooled"),
    "linear": Kind("effvit_train.models.attention.linear:Linear"),
    "performer": Kind("effvit_train.models.attention.linear:Performer"),
    "nystrom": Kind("effvit_train.models.attention.nystrom:Nystrom"),
    "linformer": Kind("effvit_train.models.attention.linformer:Linformer"),
    "fourier": Kind("effvit_train.models.spectral.fourier:FourierMixer", keeps=False),
    "fnet": Kind("effvit_train.models.spectral.fnet:FNetMixer", keeps=False),
    "wavelet": Kind("effvit_train.models.spectral.wavelet:WaveletMixer", keeps=False),
}
