"""Scenario files and what follows from them alone: load points, arrivals, request specs, the plan."""
