"""`python -m tests.doubles.asking_process SOCKET`: an administrator who keeps asking until stdin ends (R37).

Prints how many calls there were, and the middle, the 99th percentile and the greatest of their seconds, as JSON. A
process of its own, so that what is measured is the server and not a busy test.
"""

import json
import sys
import threading
import time

import grpc

from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2


def main():
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    found = []
    with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        count = channel.unary_unary(
            "/spire.api.server.agent.v1.Agent/CountAgents",
            request_serializer=agent_pb2.CountAgentsRequest.SerializeToString,
            response_deserializer=agent_pb2.CountAgentsResponse.FromString,
        )
        count(agent_pb2.CountAgentsRequest(), timeout=30)
        print("asking", flush=True)
        while not over.wait(0.02):
            start = time.monotonic()
            count(agent_pb2.CountAgentsRequest(), timeout=50)
            found.append(time.monotonic() - start)
    found.sort()
    told = {"calls": len(found), "p50": found[len(found) // 2], "p99": found[int(len(found) * 0.99)], "most": found[-1]}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
