"""What moved: how far a modality's tokens turn from where the specialist had them."""

from lightning_conan.drift.layers import layer_cosines, token_states

__all__ = ["layer_cosines", "token_states"]
