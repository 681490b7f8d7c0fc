"""``sglang-fl tune``: measures what a model calls on this machine, and writes what is exact and faster."""
