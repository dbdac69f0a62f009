"""Models, a file each: a batch of inputs to `num_outputs` numbers per sample, which depend on that sample alone.

Each gets `num_outputs` (classes, or numbers to predict) and `input_shape` (of one sample; of an image channels,
height, width) from the data, and its other arguments from its option in conf/model.
"""
