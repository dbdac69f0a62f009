"""A Ray cluster of two nodes on this machine, with one CPU each, for as long as its standard input is open.

It prints its address. `kill` on the input ends the second node as a power cut would, `add` brings another.
"""

import os
import sys

SETTINGS = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def main():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**SETTINGS, "include_log_monitor": False})
    node = cluster.add_node(**SETTINGS)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line == "kill\n":
            cluster.remove_node(node, allow_graceful=False)
        else:
            node = cluster.add_node(**SETTINGS)
        print("done", flush=True)
    cluster.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
