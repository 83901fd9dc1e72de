"""The load client: plays the request specs of a trial against a server and returns one record for each of them.

Reading order: order (what is asked and what comes back) → workers (the process) → driver (one play) → schedule (when),
requests (what is sent) → client, connection, poller (sockets) → wire (bytes of HTTP and SSE) → decode (bytes to record)
→ audit (what the client says of itself).
"""
