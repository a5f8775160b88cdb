"""An HTTP server of a checkpoint folder, as OpenAI's and Cohere's clients ask for embeddings."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
