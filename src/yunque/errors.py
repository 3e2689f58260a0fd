"""The one exception that a person, and not a bug, causes."""


class UserError(Exception):
    """A mistake its user can mend: one sentence that names what was wrong, where, and what to do.

    The command line prints it and exits with code 2; the server answers 4xx in OpenAI's error shape.
    """
