"""Calls of FlagGems that serve every vendor. Named by target strings only, never imported by core."""
