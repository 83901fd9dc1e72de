"""Run a command against a Ray cluster of two nodes on this host, one core each: to try `--scheduler ray` out.

python two_nodes.py perfsuite run scenario.yaml --scheduler ray --workers 2
"""

import os
import subprocess
import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
try:
    code = subprocess.run(sys.argv[1:], env=os.environ | {"RAY_ADDRESS": cluster.address}).returncode
finally:
    cluster.shutdown()
sys.exit(code)
