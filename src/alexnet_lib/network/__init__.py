"""The network: its tables of layers, the torch module, and checkpoints of its weights."""
