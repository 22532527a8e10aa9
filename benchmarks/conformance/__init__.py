"""Defects of concurrency that users have reported, as one neutral test each, run against this library and its peers."""
