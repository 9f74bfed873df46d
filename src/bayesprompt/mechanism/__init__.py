"""How prompts and prefixes act inside a Transformer: Petrov, Torr & Bibi (2024), computed."""
