"""Fine-tuning from a recipe, `python -m train RECIPE.toml`."""
