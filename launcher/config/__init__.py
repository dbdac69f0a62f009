"""Settings, from the command line to a checked config and to the objects it names. Imports core, and no torch."""
