"""Fast versions of what is slow in torch: for CPUs, for GPUs, and for linear layers."""
