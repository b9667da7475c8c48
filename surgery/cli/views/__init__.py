"""How results look to a person: tables, pictures and progress."""
