"""The load client: plays the request specs of a trial against a server and returns one record for each of them.

Reading order: order (what is asked and what comes back) → spawning, workers, lead (the processes) → driver (one play)
→ schedule (when), requests (what is sent) → client, connection, poller (sockets), reads → wire (bytes of HTTP and SSE)
→ answer (events to tokens) → decode (stamps to record), recorder (when that is done) → audit (what the client says of
itself). Beside it: compiled, compiling (what is in C where it could be built) and packets, packet_streams,
packet_referee, packet_tally (captured packets as a referee of the reads' stamps).
"""
