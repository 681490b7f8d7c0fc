"""What the sessions ``api`` and ``release`` of the noxfile do, step by step."""
