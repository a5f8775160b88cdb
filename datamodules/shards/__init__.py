"""The packed format: records, index, writing, reading, remote sets, checks."""
