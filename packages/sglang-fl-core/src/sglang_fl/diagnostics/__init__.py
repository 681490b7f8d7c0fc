"""What would run, and why not the rest."""
