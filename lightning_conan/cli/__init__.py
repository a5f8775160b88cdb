"""The `conan` command."""
