"""The experiment over a whole model: perturbed states, measurements, signals, and `score`."""
