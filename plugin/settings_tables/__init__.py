"""The tables of querylift.toml. `querylift.plugin.settings` puts them together."""
