"""The embedded backend: HealthImaging over a database and a blob store of our own."""
