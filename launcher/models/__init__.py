"""Models, a file each: a batch of inputs to `num_outputs` numbers per sample, which depend on that sample alone."""
