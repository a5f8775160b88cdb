"""Keys of PEFT's ``adapter_model.safetensors``: a module, one of its parameters, and the role of the tensor in it."""

from dataclasses import dataclass

from lightning_conan.embedder.checkpoint.adapter import PREFIX

ROLES = {
    ".lora_A.weight": ("weight", "down"),
    ".lora_B.weight": ("weight", "up"),
    ".lora_B.bias": ("bias", "shift"),
    ".lora_embedding_A": ("weight", "table down"),
    ".lora_embedding_B": ("weight", "table up"),
    ".lora_magnitude_vector": ("weight", "magnitude"),
    ".base_layer.weight": ("weight", "copy"),
    ".base_layer.bias": ("bias", "whole"),
    ".token_adapter.trainable_tokens_delta": ("weight", "rows"),
}
"""Parameter and role by the ending of a key; without such an ending a key is a parameter's own name."""


@dataclass(frozen=True)
class Key:
    """A key of an adapter file.

    Args:
        text: The key itself.
        module: Name of the module in the model that was trained.
        parameter: The module's parameter that the tensor is a part of.
        role: Role of the tensor in it.
    """

    text: str
    module: str
    parameter: str
    role: str

    @property
    def name(self) -> str:
        """Name of the parameter in the model that was trained."""
        return f"{self.module}.{self.parameter}"

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Splits a key.

        Example:
            >>> Key.parse("base_model.model.visual.merger.linear_fc1.lora_A.weight").name
            'visual.merger.linear_fc1.weight'
        """
        bare = text.removeprefix(PREFIX)
        for ending, (parameter, role) in ROLES.items():
            if bare.endswith(ending):
                return cls(text, bare.removesuffix(ending), parameter, role)
        module, _, parameter = bare.rpartition(".")
        return cls(text, module, parameter, "whole")


class MisfitError(Exception):
    """A key that does not fit the base; its text completes "the key, which ..."."""
