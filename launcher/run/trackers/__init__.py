"""Where the record of a run is shown: W&B, TensorBoard, a table, and what Accelerate knows; one file each.

Each runs in a process of its own beside the training of rank 0, and reads the record: what it loses is shown again.
"""
