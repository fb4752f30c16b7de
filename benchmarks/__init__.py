"""Benchmarks of speed and memory, given as ratios to the limits of the same machine in the same run. Not tests."""
