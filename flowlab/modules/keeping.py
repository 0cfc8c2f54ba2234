def keep(*a, **k):
    raise NotImplementedError
