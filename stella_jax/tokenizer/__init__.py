"""Tokenizers: texts and pairs of texts to token ids, as a checkpoint's tokenizer.json says."""
