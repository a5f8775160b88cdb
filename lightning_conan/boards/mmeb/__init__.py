"""MMEB-V2 and V3 (arXiv 2507.04590, 2604.23321): image, video, document, audio, text and cross-modal tasks of VLM2Vec."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
