"""The locustfile of `perfsuite run --scheduler locust`."""

from perfsuite.integrations.locust import LlmUser


class Users(LlmUser):
    """The scenario's arrivals decide; the user only holds the place that locust wants filled."""
