"""Errors, warnings and notes as one type, `Diagnostic`, with codes, exit codes and wording."""
