"""Forms of records: one file a form."""
