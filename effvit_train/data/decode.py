"""One image file to square uint8 pixels, deterministically; a file that cannot be used says why."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".tga",
})  # fmt: skip
_GREY = ("1", "L", "LA", "La", "I", "F")
_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")

# Pillow only warns up to twice its limit; `_open` refuses above ours, and says so.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(Exception):
    """A file that cannot be used as an image; `str(error)` is the reason in a few words."""


@dataclass(frozen=True)
class Decoder:
    """How files become pixels.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        crop_mode: `center` | `squash` | `border`, see `DatasetConfig`.
        max_pixels: larger images are refused before they are decoded.
    """

    channels: int
    crop_mode: str
    max_pixels: int

    def read(self, path: Path | str, size: int) -> Pixels:
        """Decode a file wholly and make it square, shape (channels, size, size).

        Raises:
            BadImage: whatever is wrong with the file.
        """
        # The decoder of a damaged file may raise anything, down to IndexError and struct.error.
        try:
            with _open(path, self.max_pixels) as image:
                # JPEG can decode at a fraction of its size; twice the target loses nothing visible.
                image.draft(None, (2 * size, 2 * size))
                return self.square(_upright(image), size)
        except BadImage:
            raise
        except Exception as error:
            raise BadImage(_reason(error)) from None

    def square(self, image: Image.Image, size: int) -> Pixels:
        """Convert and resize a decoded image, shape (channels, size, size); bicubic, antialiased."""
        image = _plain(image, "L" if self.channels == 1 else "RGB")
        width, height = image.size
        if (width, height) != (size, size):
            if self.crop_mode == "border":
                image = _bordered(image, size)
            elif self.crop_mode == "squash":
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            else:
                side = min(width, height)
                left, top = (width - side) / 2, (height - side) / 2
                box = (left, top, left + side, top + side)
                image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        pixels = np.array(image, dtype=np.uint8)
        return pixels[None] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def is_grey(path: Path | str, max_pixels: int) -> bool | None:
    """Whether the file's header says that it holds no colour; None when it cannot be read."""
    try:
        with _open(path, max_pixels) as image:
            if image.mode == "P":
                palette = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
                return bool((palette == palette[:, :1]).all())
            return image.mode in _GREY or image.mode in _16_BIT
    except Exception:  # as in `Decoder.read`, which gives the reason
        return None


def _open(path: Path | str, max_pixels: int) -> Image.Image:
    if max_pixels != Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        raise BadImage(f"more than dataset.max_pixels={max_pixels} pixels") from None
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise BadImage(f"{width}x{height} is more than dataset.max_pixels={max_pixels}")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The first frame, decoded, turned as its EXIF orientation says."""
    image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF beside good pixels
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """8 bits per channel, no palette, transparency on white; `mode` is L or RGB."""
    if image.mode in _16_BIT or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("has 32-bit pixels outside 0..65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise BadImage("has floating-point pixels, whose range is not known")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    elif image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _bordered(image: Image.Image, size: int) -> Image.Image:
    """Longer side to `size`, the rest filled with the image's own mean colour."""
    width, height = image.size
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = image.resize(inner, Image.Resampling.BICUBIC)
    mean = np.rint(np.asarray(image).mean(axis=(0, 1), dtype=np.float64)).astype(int)
    fill = int(mean) if mean.ndim == 0 else tuple(mean.tolist())
    canvas = Image.new(image.mode, (size, size), fill)
    canvas.paste(small, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read"
    if "truncated" in text or isinstance(error, EOFError):
        return "truncated"
    return f"damaged ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
