"""Forms of export: one file each, found by the word that `--to` takes."""
