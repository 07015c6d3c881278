"""Abilities of this machine, and how the compiler is told to use them."""
