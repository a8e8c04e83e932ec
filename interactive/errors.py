"""The one kind of error whose words a person at the page gets to read."""


class UserError(ValueError):
    """Something that cannot be done as asked. The message holds no path and may be shown."""
