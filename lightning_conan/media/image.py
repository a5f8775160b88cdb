"""Images: PNG, JPEG and WebP bytes to RGB pixels."""

import io
import warnings

import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lightning_conan.items import Media
from lightning_conan.media.limits import DEFAULT, Limits, MediaError

FORMATS = ("PNG", "JPEG", "WEBP")


def decode_image(media: Media, limits: Limits = DEFAULT) -> UInt8[Tensor, "3 height width"]:
    """Upright RGB pixels of a PNG, JPEG or WebP file.

    Raises:
        MediaError: Not such a file, truncated, or over a limit (checked from the header).
    """
    data = media.read()
    limits.check_bytes(media, data)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # PIL's own bomb warning: our limit is checked on the next line
            limits.check_pixels(media, *image.size)
            return rgb_tensor(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except Exception as error:
        # PIL's decoders raise whatever their parser stumbled over (OSError, SyntaxError, struct.error, ...).
        raise MediaError(media, f"cannot be decoded as one of {FORMATS} ({error})") from error


def rgb_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """A PIL image as RGB pixels."""
    pixels: Tensor = tv.pil_to_tensor(image.convert("RGB"))
    return pixels.to(torch.uint8)
