"""The one error a user is meant to read."""


class StellaError(ValueError):
    """Bad input from outside: a file, a text, an argument.

    The message is one readable sentence (or a list under one) that says what is wrong, where, and what to do. The
    command lines print it to stderr without a traceback and exit with 1.
    """
