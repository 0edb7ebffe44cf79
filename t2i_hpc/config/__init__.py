"""Typed configuration: the schema of configs/, its checks, and how it is composed."""
