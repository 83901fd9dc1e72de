"""locust -f shape.py --headless --perfsuite-pacing locust --perfsuite-scenario scenario.yaml

Two users for two seconds, then four, until the scenario has no more requests.
"""

from locust import LoadTestShape

from perfsuite.integrations.locust import LlmUser


class Users(LlmUser):
    pass


class Steps(LoadTestShape):
    def tick(self):
        return (2, 10) if self.get_run_time() < 2 else (4, 10)
