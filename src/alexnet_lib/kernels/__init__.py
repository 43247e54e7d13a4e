"""Loops that torch has no fast form of: for CPUs, for GPUs, and for linear layers."""
