"""What runs a layer: which implementations may, what becomes of each layer, and checks of what ran."""
