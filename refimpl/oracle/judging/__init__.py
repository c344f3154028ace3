"""How a step is measured, what tolerance it has, and which near ties are allowed."""
