"""Fine-tuning from a recipe, `python -m train RECIPE.toml`, and the making of the embedded checkpoint, `train.tiny`."""
