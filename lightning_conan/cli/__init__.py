"""The `conan` command."""

from lightning_conan.moved import install

install()
