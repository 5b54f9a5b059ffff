"""How nodes prove themselves: for each way the prover on the node and the verifier in the server."""
