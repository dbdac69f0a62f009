"""Many runs: trials, their states, processes and devices, and their comparison.

May use run and what is below it; a trial's own story (launcher.trial) is named and not imported.
"""
