"""The one exception a person can act on."""


class UserError(Exception):
    """Wrong input or a missing thing: the message says what is wrong, where (file:line, field) and what to do.

    The command line prints it as one line, without a traceback, and exits 2.
    """
