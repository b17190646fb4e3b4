"""Metrics, trainings and shards -> pictures, tables and a page, without Ray."""
