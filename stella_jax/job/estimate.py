"""placeholder"""


def estimate_job(*args):
    raise NotImplementedError
