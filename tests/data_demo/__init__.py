"""Tests of the demo data in shards/demo."""
