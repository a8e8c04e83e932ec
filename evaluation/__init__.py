"""What a run was worth: measures, outside run files, comparison, tables, plots and the report.

Reads records only; imports no model. The heavy libraries load inside the functions that need them.
"""
