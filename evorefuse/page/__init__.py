"""The report's page: reading a cell's files, the figures, the tables and one self-contained HTML file. Writes nothing."""
