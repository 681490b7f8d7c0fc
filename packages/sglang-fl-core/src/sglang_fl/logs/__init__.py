"""Files that servers write, what may stand in them, and what is compiled while one serves."""
