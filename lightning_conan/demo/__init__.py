"""The whole method in small, its studies, and the report."""
