"""Whether a server's numbers are another's: both are asked the same, as their client."""
