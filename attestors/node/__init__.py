"""How nodes prove themselves: for each way both sides of its protocol, the prover on the node and the verifier in the server."""
