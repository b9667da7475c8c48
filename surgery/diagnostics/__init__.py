"""What is wrong, in one type: `Diagnostic`, its codes, exit codes, and how sentences are made."""
