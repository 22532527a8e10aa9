"""One thin adapter for each library, written as its own documentation shows its use."""
