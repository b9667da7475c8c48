"""GGUF files for llama.cpp: a decoder's weights, metadata and tokenizer, and adapters of it."""
