"""The pieces of the summary page: what a run left, its tables and its charts. No torch here."""
