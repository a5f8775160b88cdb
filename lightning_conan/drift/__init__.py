"""What moved: how far a modality's tokens turn from where the specialist had them, and what that cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
