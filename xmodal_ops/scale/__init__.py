"""Batches larger than memory, a device or a process: streamed moments, two-pass losses, collectives."""
