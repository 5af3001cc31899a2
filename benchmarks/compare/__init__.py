"""What many measurements come to: rate differences, tables, plots and the report."""
