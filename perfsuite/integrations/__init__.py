"""Front doors in other tools: pytest, locust, Ray. Each module imports its tool; this package imports none of them."""
