"""A person at the search: the page, the terminal, and the find-this-picture study over one session."""
