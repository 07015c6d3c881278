"""What this machine can do, and how the compiler is told to use it."""
