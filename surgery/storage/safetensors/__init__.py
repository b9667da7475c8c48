"""safetensors without torch: headers, streams of tensors, shards, and the writer."""
