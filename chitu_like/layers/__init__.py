"""Modules that know parallelism but no model."""
