"""Many runs: trials, their processes and devices, and their comparison."""
