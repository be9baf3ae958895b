"""Error of a search; its message names the file or key and what helps."""


class TuneError(Exception):
    """A space or a search folder that cannot be used; the command line prints it without a traceback."""
