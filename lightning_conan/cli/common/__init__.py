"""Shared parts of the verbs."""
