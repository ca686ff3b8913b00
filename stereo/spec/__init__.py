"""The experiment spec: every field declared once, loaded, checked and published as a schema."""
