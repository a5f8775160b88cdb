"""Media decoding: bytes to pixels, frames, document pages and waveforms; one file a modality."""

import lazy_loader

from lightning_conan.moved import install

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

install()
