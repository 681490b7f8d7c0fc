"""What the steps of a model spend their time on, by who ran it: ``sglang-fl profile``."""
