"""Rows of an evaluation -> means, verdicts, Markdown, a sheet; without Ray."""
