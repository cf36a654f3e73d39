"""The stage engine: freshness, running and publishing of results."""
