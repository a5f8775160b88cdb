"""The machinery of a training step: weights, scoring, optimizers, collectives, sharding, memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
