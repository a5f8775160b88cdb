"""What moved: how far the audio tokens turn from where the specialist had them."""

from lightning_conan.drift.layers import audio_states, layer_cosines

__all__ = ["audio_states", "layer_cosines"]
