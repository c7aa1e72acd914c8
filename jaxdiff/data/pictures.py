"""Images in files: grey or colour, of eight bits a value."""

import io
import zlib

import numpy as np

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error)  # of Pillow, for broken images
HEADERS = 10_000  # files of a folder whose headers say whether it is one of colour images


def read_picture(file):
    """The image in a file, a path or the file's bytes, of mode L or RGB; of 16 bits the upper 8.

    Raises:
      One of `ERRORS` if it is no image of 8 or 16 bits a value.
    """
    from PIL import Image

    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
        if picture.mode.startswith("I;16"):  # Pillow would cut at 255
            return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise OSError(f"values of 32 bits ({picture.mode})")
        return picture.convert(_mode(picture))


def squared(x, size):
    """An image `(height, width, channels)` of bytes as a square: scaled (Lanczos) and cut to its middle."""
    from PIL import Image

    if x.dtype != np.uint8 or x.shape[-1] not in (1, 3):
        raise ValueError(f"squared: expected grey or colour bytes, got {x.dtype} of shape {x.shape}")
    picture = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    scale = size / min(picture.size)
    picture = picture.resize([max(size, round(scale * n)) for n in picture.size], Image.Resampling.LANCZOS)
    left, top = ((n - size) // 2 for n in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, x.shape[-1])


def common_mode(paths):
    """L if all pictures are grey, by the headers of some thousands, else RGB."""
    from PIL import Image

    def colour(path):
        try:
            with Image.open(path) as picture:
                return _mode(picture) == "RGB"
        except ERRORS:
            return False

    return "RGB" if any(colour(path) for path in paths[:: -(-len(paths) // HEADERS)]) else "L"


def _mode(picture):
    return "L" if picture.mode in ("1", "L", "LA", "F", "I") or picture.mode.startswith("I;16") else "RGB"
