"""The one exception for what a user can put right."""


class ConfigError(ValueError):
    """The user's input is wrong: the run ends with exit status 2 and this message alone, no traceback.

    Args:
        message: Names the setting, says what is wrong with it and what would be right.
    """
