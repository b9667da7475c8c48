"""What exporter and runner of `ort-genai` have in common."""
