"""Runs a Ray cluster of three nodes on this machine: prints its address, and loses a node for each line read."""

import sys

from ray.cluster_utils import Cluster

SIZE = {"num_cpus": 1, "object_store_memory": 80_000_000}

cluster = Cluster(initialize_head=True, head_node_args={**SIZE, "include_dashboard": False})
nodes = [cluster.add_node(**SIZE) for _ in range(2)]
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
cluster.shutdown()
