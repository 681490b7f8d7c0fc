"""Find the layer, op or ATen op that makes a model's numbers differ, in one start of the engine."""
