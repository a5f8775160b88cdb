from .audio import decode_audio, encode_audio
from .decode import Decoding, decode_media
from .document import decode_document
from .image import decode_image
from .limits import Limits, MediaError
from .video import Clip, decode_video, encode_video

__all__ = [
    "Clip",
    "Decoding",
    "Limits",
    "MediaError",
    "decode_audio",
    "decode_document",
    "decode_image",
    "decode_media",
    "decode_video",
    "encode_audio",
    "encode_video",
]
