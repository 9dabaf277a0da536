"""Where visits and raws come from."""
