"""How near outputs come to their targets: scores as functions, and networks that know photos."""
