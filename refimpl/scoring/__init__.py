"""The experiment over a whole model: states, journeys, measurements, and `score`."""
