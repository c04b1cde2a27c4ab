"""The HealthImaging REST API over the backend port: `endpoint.HealthImagingApp` is the ASGI application."""
