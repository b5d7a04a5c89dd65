"""The parts of the summary page: reading the run, tables and charts. No torch is imported."""
