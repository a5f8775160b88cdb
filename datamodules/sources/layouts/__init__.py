"""Layouts of published data sets: one file each, found by its name."""
