"""locust -f locustfile.py --headless --perfsuite-scenario scenario.yaml

With --perfsuite-pacing locust these users send: -u and -r, or a LoadTestShape (shape.py), decide how many there are.
"""

from locust import constant

from perfsuite.integrations.locust import LlmUser


class Users(LlmUser):
    wait_time = constant(0)
