"""The report's page: a cell's files read, its figures, tables and one self-contained HTML file. Writes nothing."""
