"""How parameters are trained: the loop, its steps, and the solvers of convex problems."""
