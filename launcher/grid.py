def compare(path, metric, mode):
    pass
