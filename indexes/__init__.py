"""Where image vectors are kept and searched."""
